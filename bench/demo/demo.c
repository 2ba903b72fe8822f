/* SPDX-License-Identifier: Apache-2.0
 *
 * The demo: a C program that knows gpulet only by its header asks real models real questions.
 *
 *     demo SOCKET HELD_OUT_DIGITS
 *
 * It sends every held-out handwritten digit to the model `digits`, many in flight, and counts how
 * many are read right; then it makes a 440 Hz tone, sends frames of it to `crepe`, and prints the
 * pitch that the model hears. Exits with 0 only if at least 97 % of at least 300 digits are right and
 * the pitch is 440 +- 3 Hz.
 */
#include <gpulet.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIXELS 64
#define CLASSES 10
#define DIGITS_MIN 300
#define RIGHT_MIN 0.97

#define TONE_HZ 440.0
#define TONE_TOLERANCE_HZ 3.0
#define SAMPLE_RATE_HZ 16000.0
#define FRAME_SAMPLES 1024
#define HOP_SAMPLES 160
#define FRAMES 16
#define PITCH_BINS 360

/* A demo must not fail because its machine is busy: every request may take this long. */
#define ANSWER_NS UINT64_C(60000000000)

/* As held-out.bin has them: little-endian, which is this machine's order wherever gpulet runs. */
struct digit {
  float pixels[PIXELS];
  uint32_t label;
};

static void check(int32_t status, const char *what) {
  if (status != GPULET_OK) {
    fprintf(stderr, "demo: %s: %s: %s\n", what, gpulet_status_text(status), gpulet_error_text());
    exit(1);
  }
}

static struct digit *read_digits(const char *path, uint32_t *count) {
  FILE *file = fopen(path, "rb");
  struct digit *digits = NULL;
  if (file == NULL || fread(count, sizeof *count, 1, file) != 1 || *count > 100000) {
    fprintf(stderr, "demo: %s: not a file of digits\n", path);
    exit(1);
  }
  digits = malloc(*count * sizeof *digits);
  if (digits == NULL || fread(digits, sizeof *digits, *count, file) != *count) {
    fprintf(stderr, "demo: %s: ends early\n", path);
    exit(1);
  }
  fclose(file);
  return digits;
}

static uint32_t largest(const float *values, uint32_t count) {
  uint32_t best = 0;
  for (uint32_t index = 1; index < count; index++) {
    if (values[index] > values[best]) best = index;
  }
  return best;
}

static int ascending(const void *one, const void *other) {
  const double difference = *(const double *)one - *(const double *)other;
  return (difference > 0) - (difference < 0);
}

static void print_latencies(const char *title, double *ms, uint32_t count) {
  double sum = 0;
  qsort(ms, count, sizeof *ms, ascending);
  for (uint32_t index = 0; index < count; index++) sum += ms[index];
  printf("  %-28s %6u %9.3f %9.3f %9.3f %9.3f\n", title, count, sum / count, ms[count / 2],
         ms[count * 9 / 10], ms[count * 99 / 100]);
}

/* Reaps one answer, counts it and records its latency; user_data is the digit's index. */
static uint32_t take_digit(gpulet_session *session, const struct digit *digits,
                           const uint64_t *submitted_ns, double *ms) {
  struct gpulet_completion answer;
  struct gpulet_tensor logits;
  gpulet_request request;
  uint32_t count = 0, right = 0;
  check(gpulet_wait(session, &answer, 1, ANSWER_NS, &count), "waiting for a digit");
  ms[answer.user_data] = (double)(gpulet_now_ns() - submitted_ns[answer.user_data]) / 1e6;
  check(answer.status, "reading a digit");
  request.slot = answer.slot;
  request.generation = answer.generation;
  check(gpulet_request_output(session, request, 0, &logits), "output of digits");
  right = largest(logits.data, CLASSES) == digits[answer.user_data].label;
  check(gpulet_request_release(session, request), "release");
  return right;
}

/* Sends every digit, at most `depth` at a time; returns how many were read right. */
static uint32_t read_all(gpulet_session *session, uint32_t model, const struct digit *digits,
                         uint32_t count, uint32_t depth, double *ms) {
  uint64_t *submitted_ns = calloc(count, sizeof *submitted_ns);
  uint32_t sent = 0, taken = 0, right = 0;
  if (submitted_ns == NULL) exit(1);
  while (taken < count) {
    while (sent < count && sent - taken < depth) {
      struct gpulet_submit_options options;
      struct gpulet_tensor image;
      gpulet_request request;
      memset(&options, 0, sizeof options);
      options.struct_bytes = sizeof options;
      options.user_data = sent;
      options.deadline_ns = gpulet_now_ns() + ANSWER_NS;
      check(gpulet_request_claim(session, model, 1, &request), "claim");
      check(gpulet_request_input(session, request, 0, &image), "input of digits");
      memcpy(image.data, digits[sent].pixels, sizeof digits[sent].pixels);
      submitted_ns[sent] = gpulet_now_ns();
      check(gpulet_submit(session, request, &options), "submit");
      sent++;
    }
    right += take_digit(session, digits, submitted_ns, ms);
    taken++;
  }
  free(submitted_ns);
  return right;
}

/* The frequency that CREPE's 360 activations mean: bins are 20 cents apart, and the mean of the
 * nine around the largest is taken (resource/models/README.md has the constants). */
static double pitch_hz(const float *activations) {
  const uint32_t peak = largest(activations, PITCH_BINS);
  const uint32_t first = peak < 4 ? 0 : peak - 4;
  const uint32_t last = peak + 4 >= PITCH_BINS ? PITCH_BINS - 1 : peak + 4;
  double weight = 0, weighted = 0;
  for (uint32_t bin = first; bin <= last; bin++) {
    weight += activations[bin];
    weighted += activations[bin] * bin;
  }
  return 10.0 * pow(2.0, (1997.3794084376191 + 20.0 * weighted / weight) / 1200.0);
}

/* Sends the tone in frames, all rows of one request; returns the median pitch heard. */
static double hear_tone(gpulet_session *session, uint32_t model, double *ms) {
  const double turn = 2.0 * 3.14159265358979323846;
  struct gpulet_tensor samples, activations;
  struct gpulet_submit_options options;
  struct gpulet_completion answer;
  gpulet_request request;
  uint64_t submitted_ns = 0;
  double heard[FRAMES];
  uint32_t count = 0;
  memset(&options, 0, sizeof options);
  options.struct_bytes = sizeof options;
  check(gpulet_request_claim(session, model, FRAMES, &request), "claim");
  check(gpulet_request_input(session, request, 0, &samples), "input of crepe");
  for (uint32_t frame = 0; frame < FRAMES; frame++) {
    float *row = (float *)samples.data + (size_t)frame * FRAME_SAMPLES;
    for (uint32_t sample = 0; sample < FRAME_SAMPLES; sample++) {
      const double time = (frame * HOP_SAMPLES + sample) / SAMPLE_RATE_HZ;
      row[sample] = (float)(0.5 * sin(turn * TONE_HZ * time));
    }
  }
  submitted_ns = gpulet_now_ns();
  options.deadline_ns = submitted_ns + ANSWER_NS;
  check(gpulet_submit(session, request, &options), "submit");
  check(gpulet_wait(session, &answer, 1, ANSWER_NS, &count), "waiting for crepe");
  *ms = (double)(gpulet_now_ns() - submitted_ns) / 1e6;
  check(answer.status, "hearing the tone");
  check(gpulet_request_output(session, request, 0, &activations), "output of crepe");
  for (uint32_t frame = 0; frame < FRAMES; frame++) {
    heard[frame] = pitch_hz((const float *)activations.data + (size_t)frame * PITCH_BINS);
  }
  check(gpulet_request_release(session, request), "release");
  qsort(heard, FRAMES, sizeof *heard, ascending);
  return heard[FRAMES / 2];
}

int main(int argc, char **argv) {
  struct gpulet_session_options options;
  struct gpulet_model_spec digits_model, crepe_model;
  gpulet_session *session = NULL;
  struct digit *digits = NULL;
  uint64_t bytes = 0;
  uint32_t count = 0, right = 0;
  double *alone_ms, *busy_ms, tone_ms[8], hz = 0;

  if (argc != 3) {
    fprintf(stderr, "usage: demo SOCKET HELD_OUT_DIGITS\n");
    return 2;
  }
  digits = read_digits(argv[2], &count);
  alone_ms = calloc(count, sizeof *alone_ms);
  busy_ms = calloc(count, sizeof *busy_ms);
  if (alone_ms == NULL || busy_ms == NULL) return 1;

  memset(&options, 0, sizeof options);
  options.struct_bytes = sizeof options;
  options.socket_path = argv[1];
  options.slot_bytes = 1 << 20;
  options.slot_count = 32;
  check(gpulet_session_open(&options, &session), "connecting");
  check(gpulet_model_open(session, "digits", &digits_model), "opening digits");
  check(gpulet_model_open(session, "crepe", &crepe_model), "opening crepe");
  check(gpulet_model_slot_bytes(&crepe_model, FRAMES, &bytes), "size of a crepe request");

  right = read_all(session, digits_model.model, digits, count, 1, alone_ms);
  printf("digits: %u of %u held-out handwritten digits read right (%.2f %%)\n", right, count,
         100.0 * right / count);
  if (read_all(session, digits_model.model, digits, count, 16, busy_ms) != right) {
    fprintf(stderr, "demo: batches gave other answers than single requests\n");
    return 1;
  }
  for (uint32_t turn = 0; turn < 8; turn++) hz = hear_tone(session, crepe_model.model, &tone_ms[turn]);
  printf("crepe:  a tone of %.0f Hz is heard as %.1f Hz\n\n", TONE_HZ, hz);

  printf("  %-28s %6s %9s %9s %9s %9s\n", "latency in ms, client's view", "count", "mean", "p50",
         "p90", "p99");
  print_latencies("digits, one at a time", alone_ms, count);
  print_latencies("digits, 16 in flight", busy_ms, count);
  print_latencies("crepe, 16 frames a request", tone_ms, 8);

  gpulet_session_close(session);
  free(digits);
  free(alone_ms);
  free(busy_ms);
  if (count < DIGITS_MIN || right < RIGHT_MIN * count || fabs(hz - TONE_HZ) > TONE_TOLERANCE_HZ) {
    fprintf(stderr, "demo: the answers are not right\n");
    return 1;
  }
  return 0;
}
