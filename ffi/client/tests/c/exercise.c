/* SPDX-License-Identifier: Apache-2.0
 *
 * Exercises the whole C API against a daemon, right and wrong, and leaves with 0 if everything was
 * as client.h says. Made to be run under sanitizers and valgrind.
 *
 *     exercise SOCKET [ECHO [NULL]]
 *
 * ECHO names a model with one f32 input that comes back as its output, NULL one that just answers.
 */
#include <gpulet.h>

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOTS 16u
#define LONG_NS UINT64_C(60000000000)

static const char *socket_path, *echo_name = "echo", *null_name = "null";

#define CHECK(condition)                                                                      \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, gpulet_error_text()); \
      exit(1);                                                                                \
    }                                                                                         \
  } while (0)
#define OK(call) CHECK((call) == GPULET_OK)
/* Fails so, and says something about it. */
#define FAILS(status, call) CHECK((call) == (status) && gpulet_error_text()[0] != '\0')

static struct gpulet_session_options options_for(uint32_t wait) {
  struct gpulet_session_options options = {0};
  options.struct_bytes = sizeof options;
  options.socket_path = socket_path;
  options.slot_count = SLOTS;
  options.wait = wait;
  return options;
}

static gpulet_session *open_session(uint32_t wait) {
  struct gpulet_session_options options = options_for(wait);
  gpulet_session *session = NULL;
  OK(gpulet_session_open(&options, &session));
  CHECK(session != NULL);
  return session;
}

static struct gpulet_model_spec open_model(gpulet_session *session, const char *name) {
  struct gpulet_model_spec spec;
  int32_t status;
  for (int tries = 0;; ++tries) {
    status = gpulet_model_open(session, name, &spec);
    if (status != GPULET_MODEL_LOADING || tries == 6000) break;
    (void)poll(NULL, 0, 10);
  }
  OK(status);
  CHECK(strcmp(spec.name, name) == 0 && spec.max_batch > 0 && spec.slo_ns > 0);
  return spec;
}

static void the_library(void) {
  CHECK(gpulet_abi_version() == GPULET_ABI_VERSION);
  CHECK(strcmp(gpulet_library_version(), GPULET_VERSION) == 0);
  CHECK(strcmp(gpulet_status_text(GPULET_OK), "success") == 0);
  for (int32_t status = -1; status < 100; ++status) CHECK(strlen(gpulet_status_text(status)) > 4);
  CHECK(strcmp(gpulet_status_text(GPULET_STALE), gpulet_status_text(-7)) != 0);
  CHECK(gpulet_error_text()[0] == '\0');
  uint64_t before_ns = gpulet_now_ns();
  CHECK(before_ns > 0 && gpulet_now_ns() >= before_ns);
  gpulet_session_close(NULL);
}

static void wrong_options(void) {
  struct gpulet_session_options options = options_for(GPULET_WAIT_BLOCK);
  gpulet_session *session = NULL;
  FAILS(GPULET_INVALID_ARGUMENT, gpulet_session_open(&options, NULL));
  options.struct_bytes = 0;
  FAILS(GPULET_INVALID_ARGUMENT, gpulet_session_open(&options, &session));
  CHECK(strstr(gpulet_error_text(), "struct_bytes") != NULL);
  options = options_for(3);
  FAILS(GPULET_INVALID_ARGUMENT, gpulet_session_open(&options, &session));
  options = options_for(GPULET_WAIT_BLOCK);
  options.reserved0 = 1;
  FAILS(GPULET_INVALID_ARGUMENT, gpulet_session_open(&options, &session));
  options = options_for(GPULET_WAIT_BLOCK);
  options.slot_count = GPULET_SLOTS_MAX + 1;
  FAILS(GPULET_REGION_LIMIT, gpulet_session_open(&options, &session));
  options = options_for(GPULET_WAIT_BLOCK);
  options.socket_path = "/nowhere/at/all.sock";
  FAILS(GPULET_NO_DAEMON, gpulet_session_open(&options, &session));
  CHECK(strstr(gpulet_error_text(), "/nowhere/at/all.sock") != NULL);
  CHECK(session == NULL);

  /* A program built against a later version, which leaves alone what this one does not know. */
  struct {
    struct gpulet_session_options known;
    uint64_t later[2];
  } newer = {options_for(GPULET_WAIT_BLOCK), {0, 0}};
  newer.known.struct_bytes = sizeof newer;
  OK(gpulet_session_open(&newer.known, &session));
  gpulet_session_close(session);
  newer.later[1] = 1;
  FAILS(GPULET_INVALID_ARGUMENT, gpulet_session_open(&newer.known, &session));
}

static void null_arguments(gpulet_session *session, const struct gpulet_model_spec *spec) {
  gpulet_request request = {0, 0};
  struct gpulet_completion answer;
  struct gpulet_tensor tensor;
  struct gpulet_model_spec model;
  struct gpulet_grant grant;
  uint64_t bytes;
  uint32_t number;
  char text[8];
  int fd;
  const int32_t wrong = GPULET_INVALID_ARGUMENT;

  FAILS(wrong, gpulet_session_info(NULL, &grant));
  CHECK(strcmp(gpulet_error_text(), "session: is null") == 0);
  FAILS(wrong, gpulet_session_info(session, NULL));
  FAILS(wrong, gpulet_session_check(NULL));
  FAILS(wrong, gpulet_model_open(NULL, echo_name, &model));
  FAILS(wrong, gpulet_model_open(session, NULL, &model));
  FAILS(wrong, gpulet_model_open(session, echo_name, NULL));
  FAILS(wrong, gpulet_model_open(session, "", &model));
  FAILS(wrong, gpulet_model_open(session, "\xff", &model));
  FAILS(wrong, gpulet_model_slot_bytes(NULL, 1, &bytes));
  FAILS(wrong, gpulet_model_slot_bytes(spec, 1, NULL));
  memset(&model, 0, sizeof model);
  FAILS(wrong, gpulet_model_slot_bytes(&model, 1, &bytes));
  FAILS(wrong, gpulet_request_claim(NULL, spec->model, 1, &request));
  FAILS(wrong, gpulet_request_claim(session, spec->model, 1, NULL));
  FAILS(wrong, gpulet_request_input(NULL, request, 0, &tensor));
  FAILS(wrong, gpulet_request_input(session, request, 0, NULL));
  FAILS(wrong, gpulet_request_output(NULL, request, 0, &tensor));
  FAILS(wrong, gpulet_request_output(session, request, 0, NULL));
  FAILS(wrong, gpulet_submit(NULL, request, NULL));
  FAILS(wrong, gpulet_flush(NULL));
  FAILS(wrong, gpulet_cancel(NULL, request));
  FAILS(wrong, gpulet_reap(NULL, &answer, 1, &number));
  FAILS(wrong, gpulet_reap(session, NULL, 1, &number));
  FAILS(wrong, gpulet_reap(session, &answer, 1, NULL));
  FAILS(wrong, gpulet_wait(NULL, &answer, 1, 0, &number));
  FAILS(wrong, gpulet_wait(session, NULL, 1, 0, &number));
  FAILS(wrong, gpulet_wait(session, &answer, 0, 0, &number));
  FAILS(wrong, gpulet_wait(session, &answer, 1, 0, NULL));
  FAILS(wrong, gpulet_session_fd(NULL, &fd));
  FAILS(wrong, gpulet_session_fd(session, NULL));
  FAILS(wrong, gpulet_arm(NULL, &number));
  FAILS(wrong, gpulet_arm(session, NULL));
  FAILS(wrong, gpulet_request_error(NULL, request, text, sizeof text));
  FAILS(wrong, gpulet_request_error(session, request, NULL, sizeof text));
  FAILS(wrong, gpulet_request_error(session, request, text, 0));
  FAILS(wrong, gpulet_request_release(NULL, request));
}

/* Claims one row and writes `value` into all of it. */
static gpulet_request claim(gpulet_session *session, const struct gpulet_model_spec *spec,
                            float value) {
  gpulet_request request;
  struct gpulet_tensor input;
  OK(gpulet_request_claim(session, spec->model, 1, &request));
  for (uint32_t index = 0; index < spec->input_count; ++index) {
    OK(gpulet_request_input(session, request, index, &input));
    CHECK(input.bytes == spec->inputs[index].row_bytes && input.dims[0] == 1);
    CHECK((uintptr_t)input.data % GPULET_TENSOR_ALIGN == 0);
    memset(input.data, 0, input.bytes);
    if (input.dtype == GPULET_F32) {
      float *values = input.data;
      for (uint64_t place = 0; place < input.bytes / sizeof value; ++place) values[place] = value;
    }
  }
  return request;
}

static void expect_echo(gpulet_session *session, gpulet_request request, float value) {
  struct gpulet_tensor output;
  OK(gpulet_request_output(session, request, 0, &output));
  CHECK(output.dtype == GPULET_F32);
  const float *values = output.data;
  for (uint64_t place = 0; place < output.bytes / sizeof value; ++place) {
    CHECK(values[place] == value);
  }
}

static void wrong_requests(gpulet_session *session, const struct gpulet_model_spec *spec) {
  gpulet_request request;
  struct gpulet_tensor tensor;
  struct gpulet_completion answer;
  struct gpulet_model_spec absent;
  uint32_t count;
  char text[64];

  FAILS(GPULET_NO_SUCH_MODEL, gpulet_model_open(session, "no such model", &absent));
  FAILS(GPULET_NO_SUCH_MODEL, gpulet_request_claim(session, 123456789, 1, &request));
  FAILS(GPULET_TOO_MANY_ROWS, gpulet_request_claim(session, spec->model, 0, &request));
  FAILS(GPULET_TOO_MANY_ROWS,
        gpulet_request_claim(session, spec->model, spec->max_batch + 1, &request));
  FAILS(GPULET_TIMEOUT, gpulet_wait(session, &answer, 1, 0, &count));
  FAILS(GPULET_TIMEOUT, gpulet_wait(session, &answer, 1, 2000000, &count));

  request = claim(session, spec, 1.0f);
  FAILS(GPULET_INVALID_ARGUMENT, gpulet_request_input(session, request, 8, &tensor));
  FAILS(GPULET_INVALID_ARGUMENT, gpulet_request_output(session, request, 8, &tensor));
  FAILS(GPULET_WRONG_STATE, gpulet_cancel(session, request));
  FAILS(GPULET_WRONG_STATE, gpulet_request_error(session, request, text, sizeof text));
  struct gpulet_submit_options options = {0};
  FAILS(GPULET_INVALID_ARGUMENT, gpulet_submit(session, request, &options));
  options.struct_bytes = sizeof options;
  options.flags = 2;
  FAILS(GPULET_INVALID_ARGUMENT, gpulet_submit(session, request, &options));
  OK(gpulet_submit(session, request, NULL));
  FAILS(GPULET_WRONG_STATE, gpulet_submit(session, request, NULL));
  FAILS(GPULET_WRONG_STATE, gpulet_request_release(session, request));
  OK(gpulet_wait(session, &answer, 1, LONG_NS, &count));
  CHECK(count == 1 && answer.status == GPULET_OK);
  FAILS(GPULET_WRONG_STATE, gpulet_request_error(session, request, text, sizeof text));
  OK(gpulet_request_release(session, request));
  FAILS(GPULET_STALE, gpulet_request_release(session, request));
  FAILS(GPULET_STALE, gpulet_submit(session, request, NULL));
  FAILS(GPULET_STALE, gpulet_request_input(session, request, 0, &tensor));
  request.slot = SLOTS;
  FAILS(GPULET_INVALID_ARGUMENT, gpulet_request_release(session, request));
}

static void one_at_a_time(gpulet_session *session, const struct gpulet_model_spec *spec) {
  for (uint32_t round = 0; round < 50; ++round) {
    struct gpulet_submit_options options = {0};
    struct gpulet_completion answer;
    uint32_t count;
    gpulet_request request = claim(session, spec, (float)round);
    options.struct_bytes = sizeof options;
    options.user_data = round;
    options.deadline_ns = gpulet_now_ns() + LONG_NS;
    OK(gpulet_submit(session, request, &options));
    OK(gpulet_wait(session, &answer, 1, LONG_NS, &count));
    CHECK(count == 1 && answer.status == GPULET_OK && answer.user_data == round);
    CHECK(answer.slot == request.slot && answer.generation == request.generation);
    expect_echo(session, request, (float)round);
    OK(gpulet_request_release(session, request));
  }
}

static void every_row(gpulet_session *session, const struct gpulet_model_spec *spec) {
  struct gpulet_grant grant;
  OK(gpulet_session_info(session, &grant));
  CHECK(grant.slot_count == SLOTS && grant.abi_version >> 16 == GPULET_ABI_MAJOR);
  for (uint32_t rows = 1; rows <= spec->max_batch && rows <= 4; ++rows) {
    uint64_t bytes;
    gpulet_request request;
    struct gpulet_tensor input;
    OK(gpulet_model_slot_bytes(spec, rows, &bytes));
    if (bytes > grant.slot_bytes) {
      FAILS(GPULET_SLOT_TOO_SMALL, gpulet_request_claim(session, spec->model, rows, &request));
      continue;
    }
    OK(gpulet_request_claim(session, spec->model, rows, &request));
    OK(gpulet_request_input(session, request, 0, &input));
    CHECK(input.dims[0] == (int64_t)rows && input.bytes == rows * spec->inputs[0].row_bytes);
    memset(input.data, 0, input.bytes);
    OK(gpulet_request_release(session, request));
  }
}

static void all_at_once(gpulet_session *session, const struct gpulet_model_spec *spec) {
  struct gpulet_submit_options options = {0};
  gpulet_request request, requests[SLOTS];
  struct gpulet_completion answers[5];
  uint32_t got = 0, count = 0;
  options.struct_bytes = sizeof options;
  options.flags = GPULET_SUBMIT_HELD;
  for (uint32_t index = 0; index < SLOTS; ++index) {
    requests[index] = claim(session, spec, (float)index);
    options.user_data = index;
    OK(gpulet_submit(session, requests[index], &options));
  }
  FAILS(GPULET_NO_FREE_SLOT, gpulet_request_claim(session, spec->model, 1, &request));
  OK(gpulet_reap(session, answers, 5, &count));
  CHECK(count == 0);
  OK(gpulet_flush(session));
  while (got < SLOTS) {
    OK(gpulet_wait(session, answers, 5, LONG_NS, &count));
    for (uint32_t index = 0; index < count; ++index, ++got) {
      CHECK(answers[index].status == GPULET_OK && answers[index].user_data < SLOTS);
      request = requests[answers[index].user_data];
      CHECK(request.slot == answers[index].slot);
      expect_echo(session, request, (float)answers[index].user_data);
      OK(gpulet_request_release(session, request));
    }
  }
}

static void with_a_descriptor(gpulet_session *session, const struct gpulet_model_spec *spec) {
  struct pollfd event = {0};
  uint32_t sent = 0, got = 0;
  OK(gpulet_session_fd(session, &event.fd));
  event.events = POLLIN;
  while (got < 200) {
    struct gpulet_completion answers[4];
    uint32_t count, ready;
    while (sent < 200 && sent - got < SLOTS) {
      OK(gpulet_submit(session, claim(session, spec, 0.0f), NULL));
      sent += 1;
    }
    OK(gpulet_reap(session, answers, 4, &count));
    for (uint32_t index = 0; index < count; ++index, ++got) {
      gpulet_request request = {answers[index].slot, answers[index].generation};
      OK(gpulet_request_release(session, request));
    }
    if (count > 0) continue;
    OK(gpulet_arm(session, &ready));
    if (!ready) CHECK(poll(&event, 1, 60000) == 1);
  }
}

static void deadlines_and_cancelling(gpulet_session *session,
                                     const struct gpulet_model_spec *spec) {
  struct gpulet_submit_options options = {0};
  struct gpulet_completion answer;
  uint32_t count;
  gpulet_request request = claim(session, spec, 0.0f);
  options.struct_bytes = sizeof options;
  options.deadline_ns = 1;
  OK(gpulet_submit(session, request, &options));
  OK(gpulet_wait(session, &answer, 1, LONG_NS, &count));
  CHECK(answer.status == GPULET_DEADLINE_HOPELESS || answer.status == GPULET_DEADLINE_EXPIRED);
  OK(gpulet_request_release(session, request));

  request = claim(session, spec, 0.0f);
  OK(gpulet_submit(session, request, NULL));
  OK(gpulet_cancel(session, request));
  OK(gpulet_wait(session, &answer, 1, LONG_NS, &count));
  CHECK(answer.status == GPULET_CANCELLED || answer.status == GPULET_OK);
  FAILS(GPULET_WRONG_STATE, gpulet_cancel(session, request));
  OK(gpulet_request_release(session, request));
}

static void forking(gpulet_session *session, const struct gpulet_model_spec *spec) {
  gpulet_request request = claim(session, spec, 3.0f);
  struct gpulet_completion answer;
  uint32_t count;
  int left;
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    int right = gpulet_submit(session, request, NULL) == GPULET_FORKED &&
                gpulet_wait(session, &answer, 1, 0, &count) == GPULET_FORKED &&
                gpulet_session_check(session) == GPULET_FORKED;
    gpulet_session_close(session);
    _exit(right ? 0 : 1);
  }
  CHECK(waitpid(child, &left, 0) == child && WIFEXITED(left) && WEXITSTATUS(left) == 0);
  OK(gpulet_session_check(session));
  OK(gpulet_submit(session, request, NULL));
  OK(gpulet_wait(session, &answer, 1, LONG_NS, &count));
  expect_echo(session, request, 3.0f);
  OK(gpulet_request_release(session, request));
}

static void *in_a_thread(void *argument) {
  gpulet_session *session = open_session(GPULET_WAIT_BLOCK);
  struct gpulet_model_spec spec = open_model(session, echo_name);
  CHECK(gpulet_error_text()[0] == '\0');
  one_at_a_time(session, &spec);
  gpulet_session_close(session);
  return argument;
}

static void threads(void) {
  pthread_t both[2];
  for (int index = 0; index < 2; ++index) {
    CHECK(pthread_create(&both[index], NULL, in_a_thread, NULL) == 0);
  }
  for (int index = 0; index < 2; ++index) CHECK(pthread_join(both[index], NULL) == 0);
}

static void sessions(void) {
  for (uint32_t wait = GPULET_WAIT_BLOCK; wait <= GPULET_WAIT_HYBRID; ++wait) {
    gpulet_session *session = open_session(wait);
    struct gpulet_model_spec echo = open_model(session, echo_name);
    struct gpulet_model_spec null = open_model(session, null_name);
    struct gpulet_completion answer;
    uint32_t count;
    CHECK(echo.input_count == 1 && echo.output_count == 1);
    null_arguments(session, &echo);
    wrong_requests(session, &echo);
    every_row(session, &echo);
    one_at_a_time(session, &echo);
    all_at_once(session, &echo);
    with_a_descriptor(session, &echo);
    deadlines_and_cancelling(session, &echo);
    forking(session, &echo);
    gpulet_request request = claim(session, &null, 0.0f);
    OK(gpulet_submit(session, request, NULL));
    OK(gpulet_wait(session, &answer, 1, LONG_NS, &count));
    CHECK(answer.status == GPULET_OK && answer.model == null.model);
    /* Closed with an answered request, a claimed one and one in flight. */
    (void)claim(session, &echo, 0.0f);
    OK(gpulet_submit(session, claim(session, &echo, 0.0f), NULL));
    gpulet_session_close(session);
  }
}

int main(int argc, char **argv) {
  if (argc < 2 || argc > 4) {
    fprintf(stderr, "usage: exercise SOCKET [ECHO [NULL]]\n");
    return 2;
  }
  socket_path = argv[1];
  if (argc > 2) echo_name = argv[2];
  if (argc > 3) null_name = argv[3];
  the_library();
  wrong_options();
  sessions();
  threads();
  puts("exercise: ok");
  return 0;
}
