// SPDX-License-Identifier: Apache-2.0
//
// Exercises gpulet.hpp against a daemon, and leaves with 0 if everything was as it says. Made to be
// run under sanitizers and valgrind.
//
//     exercise SOCKET [ECHO]
//
// ECHO names a model with one f32 input that comes back as its output.
#include <gpulet.hpp>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <type_traits>

namespace {

constexpr std::uint32_t kSlots = 8;

void require(bool condition, int line, const char *text) {
  if (!condition) {
    std::cerr << __FILE__ << ':' << line << ": " << text << " (" << gpulet_error_text() << ")\n";
    std::exit(1);
  }
}
#define CHECK(condition) require((condition), __LINE__, #condition)

// The status of what it throws.
template <class F>
std::int32_t thrown(F call) {
  try {
    call();
  } catch (const gpulet::Error &error) {
    CHECK(error.what()[0] != '\0');
    return error.status();
  }
  return GPULET_OK;
}

gpulet::Request filled(const gpulet::Model &model, float value) {
  gpulet::Request request = model.claim();
  const auto input = request.input<float>(0);
  std::fill(input.begin(), input.end(), value);
  return request;
}

bool echoes(const gpulet::Request &request, float value) {
  const auto output = request.output<float>(0);
  return !output.empty() &&
         std::all_of(output.begin(), output.end(), [value](float got) { return got == value; });
}

void one_at_a_time(gpulet::Session &session, const gpulet::Model &model) {
  for (int round = 0; round < 20; ++round) {
    const float value = static_cast<float>(round);
    gpulet::Request request = filled(model, value);
    request.submit(gpulet::Submit().deadline_in(std::chrono::seconds(60)).user_data(9));
    const auto answer = session.wait_for(std::chrono::seconds(60));
    CHECK(answer && answer->status == GPULET_OK && answer->user_data == 9);
    CHECK(request.is(*answer) && !gpulet::late(*answer) && echoes(request, value));
  }
}

void wrong_use(gpulet::Session &session, const gpulet::Model &model) {
  CHECK(thrown([&] { session.model("no such model"); }) == GPULET_NO_SUCH_MODEL);
  CHECK(thrown([&] { model.claim(0); }) == GPULET_TOO_MANY_ROWS);
  CHECK(!session.wait_for(std::chrono::milliseconds(1)));
  CHECK(!session.wait_for(std::chrono::nanoseconds(-1)));
  gpulet::Request request = model.claim();
  CHECK(thrown([&] { request.input<std::int64_t>(0); }) == GPULET_INVALID_ARGUMENT);
  CHECK(thrown([&] { request.input(7); }) == GPULET_INVALID_ARGUMENT);
  CHECK(thrown([&] { request.cancel(); }) == GPULET_WRONG_STATE);
  CHECK(thrown([&] { request.error(); }) == GPULET_WRONG_STATE);
  CHECK(model.slot_bytes(1) <= session.info().slot_bytes);
  CHECK(model.inputs().size() == 1 && model.outputs().size() == 1 && model.slo().count() > 0);
  gpulet::Request empty;
  CHECK(!empty && empty.try_submit() == GPULET_INVALID_ARGUMENT);
  CHECK(thrown([&] { empty.input(0); }) == GPULET_INVALID_ARGUMENT);
}

// Claims, taking answers of destroyed requests until there is a slot.
gpulet::Request claim(gpulet::Session &session, const gpulet::Model &model) {
  for (;;) {
    gpulet::Request request;
    const std::int32_t status = model.try_claim(1, request);
    if (status == GPULET_OK) return request;
    CHECK(status == GPULET_NO_FREE_SLOT);
    CHECK(!session.wait_for(std::chrono::milliseconds(1)));
  }
}

// Slots come back from requests that are moved, assigned over, and destroyed in flight.
void ownership(gpulet::Session &session, const gpulet::Model &model) {
  for (std::uint32_t round = 0; round < 3 * kSlots; ++round) {
    gpulet::Request first = claim(session, model);
    gpulet::Request second = std::move(first);
    CHECK(!first && second);
    second = claim(session, model);
    second.submit();
  }
  // What was destroyed in flight is not seen, and its slot comes back as its answer does.
  std::vector<gpulet::Request> held;
  while (held.size() < kSlots) held.push_back(claim(session, model));
  for (auto &request : held) request.submit(gpulet::Submit().held());
  session.flush();
  std::uint32_t got = 0;
  while (got < kSlots) {
    gpulet::Completion answers[3];
    const std::uint32_t count = session.reap(answers, 3);
    for (std::uint32_t index = 0; index < count; ++index) {
      CHECK(std::any_of(held.begin(), held.end(),
                        [&](const gpulet::Request &it) { return it.is(answers[index]); }));
    }
    got += count;
    if (count == 0 && !session.arm()) {
      CHECK(session.wait_for(std::chrono::seconds(60)).has_value());
      got += 1;
    }
  }
  CHECK(session.fd() >= 0 && session.try_check() == GPULET_OK);
}

}  // namespace

int main(int argc, char **argv) try {
  if (argc < 2 || argc > 3) {
    std::cerr << "usage: exercise SOCKET [ECHO]\n";
    return 2;
  }
  static_assert(!std::is_copy_constructible<gpulet::Session>::value, "a session has one owner");
  static_assert(!std::is_copy_constructible<gpulet::Request>::value, "a request has one owner");
  static_assert(std::is_nothrow_move_constructible<gpulet::Session>::value, "moves do not throw");
  static_assert(std::is_nothrow_move_assignable<gpulet::Request>::value, "moves do not throw");

  const auto nowhere = gpulet::Options().socket("/nowhere/at/all.sock");
  CHECK(thrown([&] { gpulet::Session session(nowhere); }) == GPULET_NO_DAEMON);
  gpulet::Session none(nullptr);
  CHECK(gpulet::Session::try_open(nowhere, none) == GPULET_NO_DAEMON);
  CHECK(none.handle() == nullptr && none.try_check() == GPULET_INVALID_ARGUMENT);

  const char *name = argc > 2 ? argv[2] : "echo";
  for (auto wait : {gpulet::Wait::block, gpulet::Wait::spin, gpulet::Wait::hybrid}) {
    gpulet::Session session(gpulet::Options().socket(argv[1]).slots(kSlots).wait(wait));
    const gpulet::Model model = session.model(name, std::chrono::seconds(60));
    CHECK(model.name() == name && model.max_batch() > 0);
    one_at_a_time(session, model);
    wrong_use(session, model);
    ownership(session, model);
    // A request that outlives its session is harmless.
    gpulet::Request survivor = filled(model, 0.0f);
    survivor.submit();
    gpulet::Session moved = std::move(session);
    moved.close();
    CHECK(survivor.try_cancel() == GPULET_INVALID_ARGUMENT);
    CHECK(thrown([&] { model.claim(); }) == GPULET_INVALID_ARGUMENT);
  }
  std::cout << "exercise: ok\n";
  return 0;
} catch (const std::exception &error) {
  std::cerr << "exercise: " << error.what() << '\n';
  return 1;
}
