/* SPDX-License-Identifier: Apache-2.0
 *
 * Many requests in flight, in a program that lives in an epoll loop:
 *
 *     pipeline MODEL [COUNT [IN_FLIGHT]]
 *
 * Sends COUNT (default 1000) requests of one row of zeros, IN_FLIGHT (default 16) at a time, each
 * with a deadline, and prints how many came in time and how long they took.
 *
 *     cc -std=c11 pipeline.c $(pkg-config --cflags --libs gpulet) -o pipeline
 */
#include <gpulet.h>

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

struct run {
  gpulet_session *session;
  struct gpulet_model_spec model;
  uint64_t *latency_ns; /* of the answers, in the order they came */
  uint32_t count;
  uint32_t sent;
  uint32_t answered;
  uint32_t good; /* with outputs, inside their deadline */
};

static void must(int32_t status, const char *what) {
  if (status != GPULET_OK) {
    fprintf(stderr, "pipeline: %s: %s (%s)\n", what, gpulet_status_text(status),
            gpulet_error_text());
    exit(1);
  }
}

/* Opens a model, giving a daemon that has just started half a minute to load it. */
static int32_t open_model(gpulet_session *session, const char *name,
                          struct gpulet_model_spec *model) {
  int32_t status = GPULET_MODEL_LOADING;
  for (int tries = 0; tries < 3000; ++tries) {
    status = gpulet_model_open(session, name, model);
    if (status != GPULET_MODEL_LOADING) break;
    (void)poll(NULL, 0, 10);
  }
  return status;
}

/* Fills the pipe: claims until there is no free slot, and publishes all at once. */
static void send_some(struct run *run) {
  while (run->sent < run->count) {
    gpulet_request request;
    struct gpulet_tensor input;
    int32_t status = gpulet_request_claim(run->session, run->model.model, 1, &request);
    if (status == GPULET_NO_FREE_SLOT) break;
    must(status, "claiming a slot");
    for (uint32_t index = 0; index < run->model.input_count; ++index) {
      must(gpulet_request_input(run->session, request, index, &input), "finding an input");
      memset(input.data, 0, input.bytes);
    }
    struct gpulet_submit_options options = {0};
    options.struct_bytes = sizeof options;
    options.flags = GPULET_SUBMIT_HELD;
    options.user_data = gpulet_now_ns();
    options.deadline_ns = options.user_data + run->model.slo_ns;
    must(gpulet_submit(run->session, request, &options), "submitting");
    run->sent += 1;
  }
  must(gpulet_flush(run->session), "flushing");
}

/* Takes what came; how many that were. */
static uint32_t take_some(struct run *run) {
  struct gpulet_completion answers[32];
  uint32_t count;
  must(gpulet_reap(run->session, answers, 32, &count), "reaping");
  for (uint32_t index = 0; index < count; ++index) {
    const struct gpulet_completion *answer = &answers[index];
    gpulet_request request = {answer->slot, answer->generation};
    if (answer->status == GPULET_OK && !(answer->flags & GPULET_COMPLETION_LATE)) run->good += 1;
    run->latency_ns[run->answered++] = answer->finished_ns - answer->user_data;
    must(gpulet_request_release(run->session, request), "releasing");
  }
  return count;
}

/* A program would add its other descriptors to the same epoll. */
static void serve(struct run *run) {
  struct epoll_event event = {0};
  int fd;
  int all = epoll_create1(EPOLL_CLOEXEC);
  must(gpulet_session_fd(run->session, &fd), "asking for the descriptor");
  event.events = EPOLLIN;
  if (all < 0 || epoll_ctl(all, EPOLL_CTL_ADD, fd, &event) < 0) {
    perror("epoll");
    exit(1);
  }
  while (run->answered < run->count) {
    send_some(run);
    if (take_some(run) > 0) continue;
    uint32_t ready;
    must(gpulet_arm(run->session, &ready), "arming");
    if (!ready && epoll_wait(all, &event, 1, -1) < 0 && errno != EINTR) {
      perror("epoll_wait");
      exit(1);
    }
  }
  close(all);
}

static int ascending(const void *left, const void *right) {
  uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
  return (a > b) - (a < b);
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: pipeline MODEL [COUNT [IN_FLIGHT]]\n");
    return 2;
  }
  struct run run = {0};
  struct gpulet_session_options options = {0};
  options.struct_bytes = sizeof options;
  options.slot_count = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 16;
  run.count = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 1000;
  run.latency_ns = calloc(run.count > 0 ? run.count : 1, sizeof *run.latency_ns);
  if (run.count == 0 || run.latency_ns == NULL) {
    fprintf(stderr, "pipeline: COUNT is not a number of requests\n");
    return 2;
  }

  must(gpulet_session_open(&options, &run.session), "connecting");
  must(open_model(run.session, argv[1], &run.model), argv[1]);
  uint64_t started_ns = gpulet_now_ns();
  serve(&run);
  double seconds = (double)(gpulet_now_ns() - started_ns) / 1e9;
  gpulet_session_close(run.session);

  qsort(run.latency_ns, run.count, sizeof *run.latency_ns, ascending);
  printf("%" PRIu32 " answers, %" PRIu32 " inside their deadline, %.0f a second\n", run.count,
         run.good, run.count / seconds);
  printf("p50 %.1f us, p99 %.1f us\n", (double)run.latency_ns[run.count / 2] / 1e3,
         (double)run.latency_ns[run.count - 1 - run.count / 100] / 1e3);
  free(run.latency_ns);
  return 0;
}
