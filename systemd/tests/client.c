/* SPDX-License-Identifier: Apache-2.0
 *
 * client.c - clients for boot.sh, built against the installed library.
 *
 *     client through SESSIONS     asks the model echo again and again, prints "answered" after the
 *                                 first answer of a session, opens a new one whenever one ends, and
 *                                 is done when so many sessions have answered
 *     client burst MODEL COUNT    submits COUNT requests, prints "submitted", and waits for all
 *
 * Exits 0 if every answer was right, 1 if one was wrong or did not come, 2 otherwise.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <gpulet.h>

#define ANSWER_TIMEOUT_NS UINT64_C(30000000000)

static void pause_ms(long ms) {
  struct timespec time = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&time, NULL);
}

static int32_t complain(const char *what, int32_t status) {
  fprintf(stderr, "%s: %s (%d): %s\n", what, gpulet_status_text(status), (int)status,
          gpulet_error_text());
  return status;
}

/* Opens a model, waiting for it to be loaded. */
static int32_t open_model(gpulet_session *session, const char *name,
                          struct gpulet_model_spec *model) {
  int32_t status;
  while ((status = gpulet_model_open(session, name, model)) == GPULET_MODEL_LOADING) pause_ms(20);
  return status;
}

/* One request of one row: what comes back must be what went in. */
static int32_t ask(gpulet_session *session, const struct gpulet_model_spec *model, int *is_right) {
  gpulet_request request;
  struct gpulet_tensor input, output;
  struct gpulet_completion answer;
  uint32_t count;
  int32_t status = gpulet_request_claim(session, model->model, 1, &request);
  if (status == GPULET_OK) status = gpulet_request_input(session, request, 0, &input);
  if (status == GPULET_OK) status = gpulet_request_output(session, request, 0, &output);
  if (status != GPULET_OK) return status;
  memset(input.data, rand() & 0xff, input.bytes);
  status = gpulet_submit(session, request, NULL);
  if (status == GPULET_OK)
    status = gpulet_wait(session, &answer, 1, ANSWER_TIMEOUT_NS, &count);
  if (status == GPULET_OK) status = answer.status;
  if (status == GPULET_OK) {
    *is_right = output.bytes == input.bytes && !memcmp(output.data, input.data, input.bytes);
    status = gpulet_request_release(session, request);
  }
  return status;
}

/* Asks until the session ends, or `wanted` times; returns the answers, or -1 for a wrong one. */
static long ask_often(gpulet_session *session, long wanted) {
  struct gpulet_model_spec model;
  long answers = 0;
  int is_right = 1;
  int32_t status = open_model(session, "echo", &model);
  while (status == GPULET_OK && is_right && answers < wanted) {
    status = ask(session, &model, &is_right);
    if (status == GPULET_OK && answers++ == 0) {
      puts("answered");
      fflush(stdout);
    }
    pause_ms(5);
  }
  if (status != GPULET_OK) complain("the session ended", status);
  return is_right ? answers : -1;
}

static int through(int sessions) {
  uint64_t end_ns = gpulet_now_ns() + 2 * ANSWER_TIMEOUT_NS;
  while (gpulet_now_ns() < end_ns) {
    gpulet_session *session;
    long answers;
    int32_t status = gpulet_session_open(NULL, &session);
    if (status != GPULET_OK) {
      complain("no session", status);
      pause_ms(100);
      continue;
    }
    answers = ask_often(session, sessions > 1 ? LONG_MAX : 10);
    gpulet_session_close(session);
    if (answers < 0) return 1;
    if (answers > 0 && --sessions == 0) return 0;
  }
  fprintf(stderr, "time is up, with %d sessions to go\n", sessions);
  return 1;
}

static int burst(const char *name, uint32_t wanted) {
  gpulet_session *session;
  struct gpulet_model_spec model;
  struct gpulet_completion answer;
  struct gpulet_submit_options options = {.struct_bytes = sizeof options};
  uint32_t done, count, right = 0;
  int32_t status = gpulet_session_open(NULL, &session);
  if (status != GPULET_OK) return complain("session", status), 2;
  status = open_model(session, name, &model);
  if (status != GPULET_OK) return complain("model", status), 2;
  /* A busy machine is no reason to fail: what is to be seen is that all are answered. */
  options.deadline_ns = gpulet_now_ns() + ANSWER_TIMEOUT_NS;
  for (done = 0; done < wanted; done++) {
    gpulet_request request;
    status = gpulet_request_claim(session, model.model, 1, &request);
    if (status == GPULET_OK) status = gpulet_submit(session, request, &options);
    if (status != GPULET_OK) return complain("submission", status), 2;
  }
  puts("submitted");
  fflush(stdout);
  for (done = 0; done < wanted; done++) {
    status = gpulet_wait(session, &answer, 1, ANSWER_TIMEOUT_NS, &count);
    if (status != GPULET_OK) return complain("answer", status), 1;
    if (answer.status == GPULET_OK)
      right++;
    else
      complain("answer", answer.status);
  }
  printf("%u of %u answered\n", (unsigned)right, (unsigned)wanted);
  gpulet_session_close(session);
  return right == wanted ? 0 : 1;
}

int main(int argc, char **argv) {
  if (argc == 3 && !strcmp(argv[1], "through")) return through(atoi(argv[2]));
  if (argc == 4 && !strcmp(argv[1], "burst")) return burst(argv[2], (uint32_t)atoi(argv[3]));
  fprintf(stderr, "usage: client through SESSIONS | client burst MODEL COUNT\n");
  return 2;
}
