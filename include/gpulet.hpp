// SPDX-License-Identifier: Apache-2.0
//
// gpulet.hpp - gpulet.h for C++17: sessions, models and requests that clean up after themselves.
// Header only; links like the C library. The manual is in gpulet.h; this adds only what C++ needs.
//
//     gpulet::Session session;
//     gpulet::Model model = session.model("digits");
//     gpulet::Request request = model.claim();
//     std::copy(pixels.begin(), pixels.end(), request.input<float>(0).begin());
//     request.submit();
//     gpulet::check(session.wait().status);
//     for (float score : request.output<float>(0)) use(score);
//
// Errors. Functions throw gpulet::Error, which carries the status and the text. Those named try_
//   are noexcept and return the status instead; the text is gpulet_error_text()'s.
//
// Lifetimes. A Request gives its slot back when it is destroyed. One that is destroyed in flight is
//   cancelled, and its slot comes back when its completion is reaped, which the program then does
//   not see. Requests and models may outlive their session, but can do nothing any more.
#ifndef GPULET_HPP
#define GPULET_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gpulet.h"

namespace gpulet {

// A status that is not GPULET_OK, with its text.
class Error : public std::runtime_error {
 public:
  explicit Error(std::int32_t status) : Error(status, gpulet_error_text()) {}
  Error(std::int32_t status, const std::string &details)
      : std::runtime_error(gpulet_status_text(status) +
                           (details.empty() ? std::string() : ": " + details)),
        status_(status) {}

  std::int32_t status() const noexcept { return status_; }

 private:
  std::int32_t status_;
};

// Throws unless a function of the C API succeeded.
inline void check(std::int32_t status) {
  if (status != GPULET_OK) throw Error(status);
}

// An answer; its status is the request's.
using Completion = ::gpulet_completion;

// Whether the answer came after its deadline. Its outputs are valid nevertheless.
inline bool late(const Completion &completion) noexcept {
  return (completion.flags & GPULET_COMPLETION_LATE) != 0;
}

// Some elements in a row that somebody else owns.
template <class T>
class Span {
 public:
  Span() noexcept = default;
  Span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}

  T *data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  T *begin() const noexcept { return data_; }
  T *end() const noexcept { return data_ + size_; }
  T &operator[](std::size_t index) const noexcept { return data_[index]; }

 private:
  T *data_ = nullptr;
  std::size_t size_ = 0;
};

// The bits of element types that C++17 has no type for.
struct Half {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};

// The GPULET_ number of an element type; other types do not compile.
template <class T>
struct Dtype;
template <>
struct Dtype<float> {
  static constexpr std::uint32_t number = GPULET_F32;
};
template <>
struct Dtype<Half> {
  static constexpr std::uint32_t number = GPULET_F16;
};
template <>
struct Dtype<Bfloat16> {
  static constexpr std::uint32_t number = GPULET_BF16;
};
template <>
struct Dtype<std::int64_t> {
  static constexpr std::uint32_t number = GPULET_I64;
};
template <>
struct Dtype<std::int32_t> {
  static constexpr std::uint32_t number = GPULET_I32;
};
template <>
struct Dtype<std::uint8_t> {
  static constexpr std::uint32_t number = GPULET_U8;
};
template <>
struct Dtype<bool> {
  static constexpr std::uint32_t number = GPULET_BOOL;
};
static_assert(sizeof(bool) == 1, "a bool of the ABI has one byte");

// One input or output of a request, in its slot.
class Tensor {
 public:
  explicit Tensor(const gpulet_tensor &raw) noexcept : raw_(raw) {}

  void *data() const noexcept { return raw_.data; }
  std::size_t bytes() const noexcept { return static_cast<std::size_t>(raw_.bytes); }
  std::uint32_t dtype() const noexcept { return raw_.dtype; }
  // The dimensions, the rows first.
  Span<const std::int64_t> dims() const noexcept { return {raw_.dims, raw_.rank}; }
  const gpulet_tensor &raw() const noexcept { return raw_; }

  // The elements, as T. Throws if the model's element type is another.
  template <class T>
  Span<T> as() const {
    if (raw_.dtype != Dtype<T>::number) {
      throw Error(GPULET_INVALID_ARGUMENT, "the tensor has elements of another type");
    }
    return {static_cast<T *>(raw_.data), bytes() / sizeof(T)};
  }

 private:
  gpulet_tensor raw_;
};

// How a session waits.
enum class Wait : std::uint32_t {
  block = GPULET_WAIT_BLOCK,
  spin = GPULET_WAIT_SPIN,
  hybrid = GPULET_WAIT_HYBRID,
};

// How to open a session: Options().slots(8).wait(Wait::spin).
class Options {
 public:
  Options() noexcept { raw_.struct_bytes = sizeof raw_; }

  Options &socket(std::string path) {
    path_ = std::move(path);
    return *this;
  }
  Options &wait(Wait wait) noexcept {
    raw_.wait = static_cast<std::uint32_t>(wait);
    return *this;
  }
  Options &spin(std::chrono::nanoseconds time) noexcept {
    raw_.spin_ns = static_cast<std::uint64_t>(time.count());
    return *this;
  }
  Options &slots(std::uint32_t count) noexcept {
    raw_.slot_count = count;
    return *this;
  }
  Options &slot_bytes(std::uint64_t bytes) noexcept {
    raw_.slot_bytes = bytes;
    return *this;
  }
  Options &connect_timeout(std::chrono::nanoseconds time) noexcept {
    raw_.connect_timeout_ns = static_cast<std::uint64_t>(time.count());
    return *this;
  }

  // For the C API; points into this object.
  gpulet_session_options raw() const noexcept {
    gpulet_session_options raw = raw_;
    if (!path_.empty()) raw.socket_path = path_.c_str();
    return raw;
  }

 private:
  std::string path_;
  gpulet_session_options raw_{};
};

// How to submit a request: Submit().deadline_in(20ms).user_data(7).
class Submit {
 public:
  Submit() noexcept { raw_.struct_bytes = sizeof raw_; }

  // Absolute, on the clock of gpulet_now_ns.
  Submit &deadline_ns(std::uint64_t deadline_ns) noexcept {
    raw_.deadline_ns = deadline_ns;
    return *this;
  }
  // From now.
  Submit &deadline_in(std::chrono::nanoseconds time) noexcept {
    return deadline_ns(gpulet_now_ns() + static_cast<std::uint64_t>(time.count()));
  }
  Submit &user_data(std::uint64_t data) noexcept {
    raw_.user_data = data;
    return *this;
  }
  // Publish it with the next one that is not held, or by Session::flush.
  Submit &held() noexcept {
    raw_.flags |= GPULET_SUBMIT_HELD;
    return *this;
  }

  const gpulet_submit_options &raw() const noexcept { return raw_; }

 private:
  gpulet_submit_options raw_{};
};

namespace detail {

// What a session shares with its models and requests.
struct State {
  gpulet_session *handle = nullptr;
  // By slot: the generation of a request that was destroyed in flight; 0: none.
  std::vector<std::uint32_t> abandoned;

  State() = default;
  State(const State &) = delete;
  State &operator=(const State &) = delete;
  ~State() { close(); }

  void close() noexcept {
    gpulet_session_close(handle);
    handle = nullptr;
  }

  // Gives a slot back now, or when its completion comes.
  void drop(gpulet_request request) noexcept {
    if (handle == nullptr) return;
    if (gpulet_request_release(handle, request) == GPULET_WRONG_STATE) {
      abandoned[request.slot] = request.generation;
      // If it fails, the answer comes all the same, only later.
      (void)gpulet_cancel(handle, request);
    }
  }

  // Removes the answers to destroyed requests; how many are left.
  std::uint32_t keep(Completion *completions, std::uint32_t count) noexcept {
    std::uint32_t kept = 0;
    for (std::uint32_t index = 0; index < count; ++index) {
      const Completion &answer = completions[index];
      if (abandoned[answer.slot] == answer.generation) {
        abandoned[answer.slot] = 0;
        (void)gpulet_request_release(handle, gpulet_request{answer.slot, answer.generation});
      } else {
        completions[kept++] = answer;
      }
    }
    return kept;
  }
};

}  // namespace detail

// One use of one slot. Moves; gives the slot back when destroyed.
class Request {
 public:
  // An empty one, to be moved or claimed into.
  Request() noexcept = default;
  Request(std::shared_ptr<detail::State> state, gpulet_request raw) noexcept
      : state_(std::move(state)), raw_(raw) {}
  Request(Request &&other) noexcept : state_(std::move(other.state_)), raw_(other.raw_) {}
  Request &operator=(Request &&other) noexcept {
    if (this != &other) {
      release();
      state_ = std::move(other.state_);
      raw_ = other.raw_;
    }
    return *this;
  }
  Request(const Request &) = delete;
  Request &operator=(const Request &) = delete;
  ~Request() { release(); }

  // Whether it holds a slot.
  explicit operator bool() const noexcept { return state_ != nullptr; }
  gpulet_request raw() const noexcept { return raw_; }
  // Whether the answer is this request's.
  bool is(const Completion &answer) const noexcept {
    return state_ && raw_.slot == answer.slot && raw_.generation == answer.generation;
  }

  // Where an input lies; write it before submission.
  Tensor input(std::uint32_t index) const {
    gpulet_tensor tensor;
    check(gpulet_request_input(handle(), raw_, index, &tensor));
    return Tensor(tensor);
  }
  template <class T>
  Span<T> input(std::uint32_t index) const {
    return input(index).as<T>();
  }

  // Where an output lies; read it after completion.
  Tensor output(std::uint32_t index) const {
    gpulet_tensor tensor;
    check(gpulet_request_output(handle(), raw_, index, &tensor));
    return Tensor(tensor);
  }
  template <class T>
  Span<const T> output(std::uint32_t index) const {
    const Span<T> elements = output(index).as<T>();
    return {elements.data(), elements.size()};
  }

  void submit(const Submit &how = Submit()) { check(try_submit(how)); }
  std::int32_t try_submit(const Submit &how = Submit()) noexcept {
    return gpulet_submit(handle(), raw_, &how.raw());
  }

  // Asks the daemon to drop it; the answer still comes.
  void cancel() { check(try_cancel()); }
  std::int32_t try_cancel() noexcept { return gpulet_cancel(handle(), raw_); }

  // What the model said, if it failed with a status of decade 6x.
  std::string error() const {
    char text[1024];
    check(gpulet_request_error(handle(), raw_, text, sizeof text));
    return text;
  }

  // Gives the slot back; the request is empty from then on.
  void release() noexcept {
    if (state_) state_->drop(raw_);
    state_.reset();
  }

 private:
  // Null if empty or closed, which the C API answers with a status.
  gpulet_session *handle() const noexcept { return state_ ? state_->handle : nullptr; }

  std::shared_ptr<detail::State> state_;
  gpulet_request raw_{};
};

// A model that was opened in a session.
class Model {
 public:
  Model(std::shared_ptr<detail::State> state, const gpulet_model_spec &spec)
      : state_(std::move(state)), spec_(std::make_shared<const gpulet_model_spec>(spec)) {}

  const gpulet_model_spec &spec() const noexcept { return *spec_; }
  std::string name() const { return spec_->name; }
  std::uint32_t max_batch() const noexcept { return spec_->max_batch; }
  std::chrono::nanoseconds slo() const noexcept {
    return std::chrono::nanoseconds(static_cast<std::int64_t>(spec_->slo_ns));
  }
  Span<const gpulet_tensor_spec> inputs() const noexcept {
    return {spec_->inputs, spec_->input_count};
  }
  Span<const gpulet_tensor_spec> outputs() const noexcept {
    return {spec_->outputs, spec_->output_count};
  }

  // Bytes of slot that so many rows take.
  std::uint64_t slot_bytes(std::uint32_t rows) const {
    std::uint64_t bytes = 0;
    check(gpulet_model_slot_bytes(spec_.get(), rows, &bytes));
    return bytes;
  }

  // Takes a slot for so many rows.
  Request claim(std::uint32_t rows = 1) const {
    Request request;
    check(try_claim(rows, request));
    return request;
  }
  std::int32_t try_claim(std::uint32_t rows, Request &request) const noexcept {
    gpulet_request raw;
    const std::int32_t status = gpulet_request_claim(state_->handle, spec_->model, rows, &raw);
    if (status == GPULET_OK) request = Request(state_, raw);
    return status;
  }

 private:
  std::shared_ptr<detail::State> state_;
  std::shared_ptr<const gpulet_model_spec> spec_;
};

// One connection with one region. Moves; closes when destroyed.
class Session {
 public:
  explicit Session(const Options &options = Options()) { check(try_open(options, *this)); }
  // A closed one, for try_open.
  explicit Session(std::nullptr_t) noexcept {}
  Session(Session &&) noexcept = default;
  Session &operator=(Session &&other) noexcept {
    if (this != &other) {
      close();
      state_ = std::move(other.state_);
    }
    return *this;
  }
  Session(const Session &) = delete;
  Session &operator=(const Session &) = delete;
  ~Session() { close(); }

  static std::int32_t try_open(const Options &options, Session &session) noexcept {
    try {
      auto state = std::make_shared<detail::State>();
      const gpulet_session_options raw = options.raw();
      std::int32_t status = gpulet_session_open(&raw, &state->handle);
      gpulet_grant grant;
      if (status == GPULET_OK) status = gpulet_session_info(state->handle, &grant);
      if (status != GPULET_OK) return status;
      state->abandoned.resize(grant.slot_count);
      session.close();
      session.state_ = std::move(state);
      return GPULET_OK;
    } catch (const std::bad_alloc &) {
      return GPULET_OUT_OF_MEMORY;
    }
  }

  // Ends it; models and requests of it can do nothing any more.
  void close() noexcept {
    if (state_) state_->close();
    state_.reset();
  }

  // The C API's handle; null once closed.
  gpulet_session *handle() const noexcept { return state_ ? state_->handle : nullptr; }

  // What the daemon granted.
  gpulet_grant info() const {
    gpulet_grant grant;
    check(gpulet_session_info(handle(), &grant));
    return grant;
  }

  // Whether it lives: GPULET_OK, or why not.
  std::int32_t try_check() noexcept { return gpulet_session_check(handle()); }

  // Looks a model up by its name.
  Model model(const std::string &name) {
    gpulet_model_spec spec;
    check(gpulet_model_open(handle(), name.c_str(), &spec));
    return Model(state_, spec);
  }
  // The same, asking again for so long at most while the daemon is still loading it.
  Model model(const std::string &name, std::chrono::nanoseconds patience) {
    const auto until = std::chrono::steady_clock::now() + patience;
    for (;;) {
      gpulet_model_spec spec;
      const std::int32_t status = gpulet_model_open(handle(), name.c_str(), &spec);
      if (status == GPULET_OK) return Model(state_, spec);
      const bool worth_asking = std::chrono::steady_clock::now() < until;
      if (status != GPULET_MODEL_LOADING || !worth_asking) throw Error(status);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  // Publishes held submissions.
  void flush() { check(try_flush()); }
  std::int32_t try_flush() noexcept { return gpulet_flush(handle()); }

  // The next answer, however long it takes.
  Completion wait() {
    Completion answer;
    std::uint32_t count = 0;
    check(try_wait(&answer, 1, UINT64_MAX, count));
    return answer;
  }
  // The next answer, if it comes in time.
  std::optional<Completion> wait_for(std::chrono::nanoseconds timeout) {
    Completion answer;
    std::uint32_t count = 0;
    const auto timeout_ns = static_cast<std::uint64_t>(timeout.count() < 0 ? 0 : timeout.count());
    const std::int32_t status = try_wait(&answer, 1, timeout_ns, count);
    if (status == GPULET_TIMEOUT) return std::nullopt;
    check(status);
    return answer;
  }
  // Up to max answers, at least one.
  std::int32_t try_wait(Completion *answers, std::uint32_t max, std::uint64_t timeout_ns,
                        std::uint32_t &count) noexcept {
    const std::uint64_t start_ns = gpulet_now_ns();
    std::uint64_t left_ns = timeout_ns;
    for (;;) {
      std::uint32_t taken = 0;
      const std::int32_t status = gpulet_wait(handle(), answers, max, left_ns, &taken);
      if (status != GPULET_OK) return status;
      count = state_->keep(answers, taken);
      if (count > 0) return GPULET_OK;
      if (timeout_ns != UINT64_MAX) {
        const std::uint64_t gone_ns = gpulet_now_ns() - start_ns;
        left_ns = gone_ns < timeout_ns ? timeout_ns - gone_ns : 0;
      }
    }
  }

  // Up to max answers of those that are there; how many.
  std::uint32_t reap(Completion *answers, std::uint32_t max) {
    std::uint32_t count = 0;
    check(try_reap(answers, max, count));
    return count;
  }
  std::int32_t try_reap(Completion *answers, std::uint32_t max, std::uint32_t &count) noexcept {
    std::uint32_t taken = 0;
    const std::int32_t status = gpulet_reap(handle(), answers, max, &taken);
    if (status == GPULET_OK) count = state_->keep(answers, taken);
    return status;
  }

  // The descriptor for epoll, and arm() before each wait on it: true means reap first.
  int fd() const {
    int fd = -1;
    check(gpulet_session_fd(handle(), &fd));
    return fd;
  }
  bool arm() {
    std::uint32_t ready = 0;
    check(gpulet_arm(handle(), &ready));
    return ready != 0;
  }

 private:
  std::shared_ptr<detail::State> state_;
};

}  // namespace gpulet

#endif  // GPULET_HPP
