/* SPDX-License-Identifier: Apache-2.0
 *
 * One request, start to end:
 *
 *     first [MODEL [FILE]]
 *
 * Runs one row of MODEL (default: digits). FILE holds the raw bytes of all its inputs one after the
 * other; without it they are zero. Prints each output.
 *
 *     cc -std=c11 first.c $(pkg-config --cflags --libs gpulet) -o first
 */
#include <gpulet.h>

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Every call goes through here: what failed, why, and out. */
static void must(int32_t status, const char *what) {
  if (status != GPULET_OK) {
    fprintf(stderr, "first: %s: %s (%s)\n", what, gpulet_status_text(status), gpulet_error_text());
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

static void fill(const struct gpulet_tensor *input, FILE *file) {
  memset(input->data, 0, input->bytes);
  if (file != NULL && fread(input->data, 1, input->bytes, file) != input->bytes) {
    fprintf(stderr, "first: the file is too short for the model's inputs\n");
    exit(1);
  }
}

static void print(const struct gpulet_tensor_spec *spec, const struct gpulet_tensor *output) {
  uint64_t count = output->bytes / sizeof(float);
  printf("%s:", spec->name);
  if (output->dtype != GPULET_F32) {
    printf(" %" PRIu64 " bytes\n", output->bytes);
    return;
  }
  const float *values = output->data;
  uint64_t largest = 0;
  for (uint64_t index = 0; index < count; ++index) {
    if (index < 10) printf(" %.4f", (double)values[index]);
    if (values[index] > values[largest]) largest = index;
  }
  printf("%s; the largest is number %" PRIu64 "\n", count > 10 ? " ..." : "", largest);
}

int main(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "digits";
  FILE *file = NULL;
  if (argc > 2 && (file = fopen(argv[2], "rb")) == NULL) {
    perror(argv[2]);
    return 1;
  }

  gpulet_session *session;
  struct gpulet_model_spec model;
  must(gpulet_session_open(NULL, &session), "connecting");
  must(open_model(session, name, &model), name);

  gpulet_request request;
  struct gpulet_tensor tensor;
  must(gpulet_request_claim(session, model.model, 1, &request), "claiming a slot");
  for (uint32_t index = 0; index < model.input_count; ++index) {
    must(gpulet_request_input(session, request, index, &tensor), "finding an input");
    fill(&tensor, file);
  }
  if (file != NULL) fclose(file);

  uint64_t started_ns = gpulet_now_ns();
  struct gpulet_completion answer;
  uint32_t count;
  must(gpulet_submit(session, request, NULL), "submitting");
  must(gpulet_wait(session, &answer, 1, UINT64_MAX, &count), "waiting");
  uint64_t took_ns = gpulet_now_ns() - started_ns;
  if (answer.status != GPULET_OK) {
    char text[1024] = "";
    (void)gpulet_request_error(session, request, text, sizeof text);
    fprintf(stderr, "first: %s: %s %s\n", name, gpulet_status_text(answer.status), text);
    gpulet_session_close(session);
    return 1;
  }

  for (uint32_t index = 0; index < model.output_count; ++index) {
    must(gpulet_request_output(session, request, index, &tensor), "finding an output");
    print(&model.outputs[index], &tensor);
  }
  printf("in %.1f us, of which %.1f us in the executor\n", (double)took_ns / 1e3,
         (double)answer.exec_ns / 1e3);
  must(gpulet_request_release(session, request), "releasing");
  gpulet_session_close(session);
  return 0;
}
