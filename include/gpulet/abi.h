/* SPDX-License-Identifier: Apache-2.0
 *
 * gpulet/abi.h - what two processes see: the frames on the control socket and the layout of the
 * shared region. Programs use client.h; this file is for those who write a client of their own, and
 * it is the specification that the Rust twins in ffi/abi are checked against.
 *
 * Rules: little-endian; offsets are from the start of the struct or the region; every reserved byte
 * is zero and is checked; a struct never changes its size within a major version; what is added
 * within a major version is announced by a feature bit.
 *
 * A session
 *   1. The client connects to the daemon's SOCK_SEQPACKET socket and sends one gpulet_hello.
 *   2. The daemon answers one gpulet_welcome; with status GPULET_OK it carries three descriptors
 *      (SCM_RIGHTS): the region (a memfd sealed against shrinking and growing), the submission
 *      doorbell (an eventfd that the client signals) and the completion doorbell (the reading end
 *      of a pipe: readable when the daemon has signalled, and read to take the signals).
 *   3. Models are looked up by gpulet_model_query on the socket; requests travel only in the region.
 *   4. Either side closes the socket: the session is over. A daemon that ends a session for cause
 *      stores the status into gpulet_region_header.ended and sends one gpulet_goodbye.
 *
 * The region
 *   0                  gpulet_region_header
 *   256                gpulet_ring_control of the submission ring (client writes, daemon reads)
 *   640                gpulet_ring_control of the completion ring (daemon writes, client reads)
 *   submission_offset  submission_capacity x gpulet_submission
 *   completion_offset  completion_capacity x gpulet_completion
 *   arena_offset       slot_count x slot_bytes: payload
 *
 * A ring has one writer and one reader. Cursors count entries and wrap at 2^32; the entry of cursor
 * c is at index c & (capacity - 1). The writer fills entries, then stores `tail` with release; the
 * reader loads `tail` with acquire, copies entries out, then stores `head` with release. A reader
 * that is about to sleep stores 1 to `sleeping`, issues a full fence and looks at `tail` once more; a
 * writer that has stored `tail` issues a full fence, and if `sleeping` is 1 stores 0 and signals the
 * doorbell.
 *
 * A slot holds one request's tensors: the inputs in the model's order, then the outputs, each at the
 * next multiple of GPULET_TENSOR_ALIGN, each rows x row_bytes long, rows contiguous. Offsets are
 * computed by both sides from the model and the rows, and are never sent. For GPULET_MODEL_ERROR and
 * GPULET_EXECUTOR_MEMORY the executor puts an explanation where the first output would be: UTF-8 with
 * a final NUL, at most up to the end of the slot, possibly empty.
 */
#ifndef GPULET_ABI_H
#define GPULET_ABI_H

#include <stddef.h>
#include <stdint.h>

#if defined(__cplusplus)
#define GPULET_STATIC_ASSERT(condition, text) static_assert(condition, text)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define GPULET_STATIC_ASSERT(condition, text) _Static_assert(condition, text)
#else
#error "gpulet needs C11 or C++17"
#endif

/* Major: layout, both sides must agree. Minor: additions, either side may be newer. */
#define GPULET_ABI_MAJOR 1u
#define GPULET_ABI_MINOR 0u
#define GPULET_ABI_VERSION ((GPULET_ABI_MAJOR << 16) | GPULET_ABI_MINOR)
#define GPULET_ABI_MAGIC 0x4c555047u /* "GPUL" */

/* Features of this version. Each side announces its own; both use the intersection. */
#define GPULET_FEATURE_CANCEL (UINT64_C(1) << 0)
#define GPULET_FEATURES GPULET_FEATURE_CANCEL

/* What no configuration can go beyond. */
#define GPULET_NAME_BYTES 64u      /* a model's name, with its final NUL                */
#define GPULET_TENSOR_NAME_BYTES 48u
#define GPULET_TEXT_BYTES 192u     /* an explanation, with its final NUL                */
#define GPULET_DIMS_MAX 8u         /* dimensions of a tensor, the batch dimension counted */
#define GPULET_TENSORS_MAX 8u      /* inputs of a model, and outputs                    */
#define GPULET_SLOTS_MAX 65536u    /* slots of a session                                */
#define GPULET_TENSOR_ALIGN 256u   /* tensors in a slot, and slots in the arena         */

/* Element types. */
#define GPULET_F32 1u
#define GPULET_F16 2u
#define GPULET_BF16 3u
#define GPULET_I64 4u
#define GPULET_I32 5u
#define GPULET_U8 6u
#define GPULET_BOOL 7u

/* Kinds of frame on the control socket. */
#define GPULET_FRAME_HELLO 1u
#define GPULET_FRAME_WELCOME 2u
#define GPULET_FRAME_MODEL_QUERY 3u
#define GPULET_FRAME_MODEL_SPEC 4u
#define GPULET_FRAME_STATE_QUERY 5u
#define GPULET_FRAME_STATE_REPLY 6u
#define GPULET_FRAME_GOODBYE 7u

/* Kinds of submission. */
#define GPULET_SUBMIT_INFER 1u
#define GPULET_SUBMIT_CANCEL 2u

/* Flags of a completion. */
#define GPULET_COMPLETION_LATE 1u /* answered, but after its deadline; the outputs are valid */

/* Client to daemon, first. slot_bytes and slot_count are wishes; 0 leaves it to the daemon. */
struct gpulet_hello {
  uint32_t kind;  /* GPULET_FRAME_HELLO            */
  uint32_t bytes; /* sizeof(struct gpulet_hello)   */
  uint32_t magic; /* GPULET_ABI_MAGIC              */
  uint32_t version;
  uint64_t features;
  uint64_t slot_bytes;
  uint32_t slot_count;
  uint32_t reserved0;
  uint64_t reserved1[3];
};

/* Daemon to client. The geometry is in the region's header. */
struct gpulet_welcome {
  uint32_t kind;
  uint32_t bytes;
  int32_t status;
  uint32_t version;
  uint64_t features;
  uint64_t session; /* the daemon's number for this session, as its log says it */
  uint64_t region_bytes;
  uint64_t reserved[3];
  char text[GPULET_TEXT_BYTES]; /* why not, when status is not GPULET_OK */
};

/* Client to daemon: which model is called so? */
struct gpulet_model_query {
  uint32_t kind;
  uint32_t bytes;
  char name[GPULET_NAME_BYTES];
};

/* One input or output. dims[0] is -1, the batch dimension; dims beyond rank are 0. */
struct gpulet_tensor_spec {
  char name[GPULET_TENSOR_NAME_BYTES];
  uint32_t dtype;
  uint32_t rank;
  int64_t dims[GPULET_DIMS_MAX];
  uint64_t row_bytes; /* bytes of one row: the element size times the product of dims[1..rank) */
};

/* Daemon to client: the answer to a model query. */
struct gpulet_model_spec {
  uint32_t kind;
  uint32_t bytes;
  int32_t status;
  uint32_t model; /* what submissions name it by */
  uint32_t max_batch;
  uint32_t input_count;
  uint32_t output_count;
  uint32_t reserved0;
  uint64_t slo_ns; /* a request without a deadline of its own gets this much time */
  uint64_t reserved1[3];
  char name[GPULET_NAME_BYTES];
  char text[GPULET_TEXT_BYTES]; /* why not, when status is not GPULET_OK */
  struct gpulet_tensor_spec inputs[GPULET_TENSORS_MAX];
  struct gpulet_tensor_spec outputs[GPULET_TENSORS_MAX];
};

/* Client to daemon: tell your state. Needs no hello before it. */
struct gpulet_state_query {
  uint32_t kind;
  uint32_t bytes;
};

/* Daemon to client, with one descriptor: a memfd of json_bytes bytes of JSON. */
struct gpulet_state_reply {
  uint32_t kind;
  uint32_t bytes;
  int32_t status;
  uint32_t reserved0;
  uint64_t json_bytes;
};

/* Daemon to client, last: why the session is over. */
struct gpulet_goodbye {
  uint32_t kind;
  uint32_t bytes;
  int32_t status;
  uint32_t reserved0;
  char text[GPULET_TEXT_BYTES];
};

/* At offset 0. Written once by the daemon, `version` last with release; `ended` at the very end. */
struct gpulet_region_header {
  uint32_t version; /* 0 until the rest is valid */
  uint32_t magic;
  uint64_t features;
  uint64_t region_bytes;
  uint64_t submission_offset;
  uint64_t completion_offset;
  uint64_t arena_offset;
  uint64_t slot_bytes;
  uint32_t slot_count;
  uint32_t submission_capacity; /* a power of two */
  uint32_t completion_capacity; /* a power of two, not below slot_count */
  uint32_t reserved0[15];
  int32_t ended; /* offset 128, a line of its own: GPULET_OK while the session lives */
  uint32_t reserved1[31];
};

/* Each cursor has a pair of cache lines of its own, as CPUs fetch lines in pairs. */
struct gpulet_ring_control {
  uint32_t tail; /* entries ever written; the writer stores it */
  uint32_t reserved0[31];
  uint32_t head; /* entries ever read; the reader stores it */
  uint32_t reserved1[31];
  uint32_t sleeping; /* the reader stores 1 before it sleeps; the writer takes it back to 0 */
  uint32_t reserved2[31];
};

/* One request, or one cancellation of the request in (slot, generation). */
struct gpulet_submission {
  uint32_t kind;
  uint32_t model;
  uint32_t slot;
  uint32_t generation; /* of the slot: echoed, so that a late answer is known for what it is */
  uint32_t rows;
  uint32_t reserved0;
  uint64_t deadline_ns; /* CLOCK_MONOTONIC; 0: the model's slo_ns from when the daemon takes it */
  uint64_t user_data;   /* echoed */
  uint64_t reserved1[3];
};

/* One answer. Every accepted GPULET_SUBMIT_INFER has exactly one. */
struct gpulet_completion {
  int32_t status;
  uint32_t flags;
  uint32_t slot;
  uint32_t generation;
  uint32_t rows;
  uint32_t model;
  uint64_t user_data;
  uint64_t queue_ns;    /* from the daemon taking it to its batch being sent to an executor */
  uint64_t exec_ns;     /* from there to the batch's end; 0 if it never ran                 */
  uint64_t finished_ns; /* CLOCK_MONOTONIC when this completion was written                 */
  uint32_t batch_rows;  /* rows of the batch it ran in; 0 if it never ran                   */
  uint32_t epoch;       /* of the plan it ran under                                         */
};

/* The specification, executable. */
#define GPULET_LAYOUT(type, size) GPULET_STATIC_ASSERT(sizeof(struct type) == (size), #type)
#define GPULET_FIELD(type, field, offset) \
  GPULET_STATIC_ASSERT(offsetof(struct type, field) == (offset), #type "." #field)

GPULET_LAYOUT(gpulet_hello, 64);
GPULET_FIELD(gpulet_hello, kind, 0);
GPULET_FIELD(gpulet_hello, bytes, 4);
GPULET_FIELD(gpulet_hello, magic, 8);
GPULET_FIELD(gpulet_hello, version, 12);
GPULET_FIELD(gpulet_hello, features, 16);
GPULET_FIELD(gpulet_hello, slot_bytes, 24);
GPULET_FIELD(gpulet_hello, slot_count, 32);
GPULET_FIELD(gpulet_hello, reserved0, 36);
GPULET_FIELD(gpulet_hello, reserved1, 40);

GPULET_LAYOUT(gpulet_welcome, 256);
GPULET_FIELD(gpulet_welcome, kind, 0);
GPULET_FIELD(gpulet_welcome, bytes, 4);
GPULET_FIELD(gpulet_welcome, status, 8);
GPULET_FIELD(gpulet_welcome, version, 12);
GPULET_FIELD(gpulet_welcome, features, 16);
GPULET_FIELD(gpulet_welcome, session, 24);
GPULET_FIELD(gpulet_welcome, region_bytes, 32);
GPULET_FIELD(gpulet_welcome, reserved, 40);
GPULET_FIELD(gpulet_welcome, text, 64);

GPULET_LAYOUT(gpulet_model_query, 72);
GPULET_FIELD(gpulet_model_query, kind, 0);
GPULET_FIELD(gpulet_model_query, bytes, 4);
GPULET_FIELD(gpulet_model_query, name, 8);

GPULET_LAYOUT(gpulet_tensor_spec, 128);
GPULET_FIELD(gpulet_tensor_spec, name, 0);
GPULET_FIELD(gpulet_tensor_spec, dtype, 48);
GPULET_FIELD(gpulet_tensor_spec, rank, 52);
GPULET_FIELD(gpulet_tensor_spec, dims, 56);
GPULET_FIELD(gpulet_tensor_spec, row_bytes, 120);

GPULET_LAYOUT(gpulet_model_spec, 2368);
GPULET_FIELD(gpulet_model_spec, kind, 0);
GPULET_FIELD(gpulet_model_spec, bytes, 4);
GPULET_FIELD(gpulet_model_spec, status, 8);
GPULET_FIELD(gpulet_model_spec, model, 12);
GPULET_FIELD(gpulet_model_spec, max_batch, 16);
GPULET_FIELD(gpulet_model_spec, input_count, 20);
GPULET_FIELD(gpulet_model_spec, output_count, 24);
GPULET_FIELD(gpulet_model_spec, reserved0, 28);
GPULET_FIELD(gpulet_model_spec, slo_ns, 32);
GPULET_FIELD(gpulet_model_spec, reserved1, 40);
GPULET_FIELD(gpulet_model_spec, name, 64);
GPULET_FIELD(gpulet_model_spec, text, 128);
GPULET_FIELD(gpulet_model_spec, inputs, 320);
GPULET_FIELD(gpulet_model_spec, outputs, 1344);

GPULET_LAYOUT(gpulet_state_query, 8);
GPULET_FIELD(gpulet_state_query, kind, 0);
GPULET_FIELD(gpulet_state_query, bytes, 4);

GPULET_LAYOUT(gpulet_state_reply, 24);
GPULET_FIELD(gpulet_state_reply, kind, 0);
GPULET_FIELD(gpulet_state_reply, bytes, 4);
GPULET_FIELD(gpulet_state_reply, status, 8);
GPULET_FIELD(gpulet_state_reply, reserved0, 12);
GPULET_FIELD(gpulet_state_reply, json_bytes, 16);

GPULET_LAYOUT(gpulet_goodbye, 208);
GPULET_FIELD(gpulet_goodbye, kind, 0);
GPULET_FIELD(gpulet_goodbye, bytes, 4);
GPULET_FIELD(gpulet_goodbye, status, 8);
GPULET_FIELD(gpulet_goodbye, reserved0, 12);
GPULET_FIELD(gpulet_goodbye, text, 16);

GPULET_LAYOUT(gpulet_region_header, 256);
GPULET_FIELD(gpulet_region_header, version, 0);
GPULET_FIELD(gpulet_region_header, magic, 4);
GPULET_FIELD(gpulet_region_header, features, 8);
GPULET_FIELD(gpulet_region_header, region_bytes, 16);
GPULET_FIELD(gpulet_region_header, submission_offset, 24);
GPULET_FIELD(gpulet_region_header, completion_offset, 32);
GPULET_FIELD(gpulet_region_header, arena_offset, 40);
GPULET_FIELD(gpulet_region_header, slot_bytes, 48);
GPULET_FIELD(gpulet_region_header, slot_count, 56);
GPULET_FIELD(gpulet_region_header, submission_capacity, 60);
GPULET_FIELD(gpulet_region_header, completion_capacity, 64);
GPULET_FIELD(gpulet_region_header, reserved0, 68);
GPULET_FIELD(gpulet_region_header, ended, 128);
GPULET_FIELD(gpulet_region_header, reserved1, 132);

GPULET_LAYOUT(gpulet_ring_control, 384);
GPULET_FIELD(gpulet_ring_control, tail, 0);
GPULET_FIELD(gpulet_ring_control, reserved0, 4);
GPULET_FIELD(gpulet_ring_control, head, 128);
GPULET_FIELD(gpulet_ring_control, reserved1, 132);
GPULET_FIELD(gpulet_ring_control, sleeping, 256);
GPULET_FIELD(gpulet_ring_control, reserved2, 260);

GPULET_LAYOUT(gpulet_submission, 64);
GPULET_FIELD(gpulet_submission, kind, 0);
GPULET_FIELD(gpulet_submission, model, 4);
GPULET_FIELD(gpulet_submission, slot, 8);
GPULET_FIELD(gpulet_submission, generation, 12);
GPULET_FIELD(gpulet_submission, rows, 16);
GPULET_FIELD(gpulet_submission, reserved0, 20);
GPULET_FIELD(gpulet_submission, deadline_ns, 24);
GPULET_FIELD(gpulet_submission, user_data, 32);
GPULET_FIELD(gpulet_submission, reserved1, 40);

GPULET_LAYOUT(gpulet_completion, 64);
GPULET_FIELD(gpulet_completion, status, 0);
GPULET_FIELD(gpulet_completion, flags, 4);
GPULET_FIELD(gpulet_completion, slot, 8);
GPULET_FIELD(gpulet_completion, generation, 12);
GPULET_FIELD(gpulet_completion, rows, 16);
GPULET_FIELD(gpulet_completion, model, 20);
GPULET_FIELD(gpulet_completion, user_data, 24);
GPULET_FIELD(gpulet_completion, queue_ns, 32);
GPULET_FIELD(gpulet_completion, exec_ns, 40);
GPULET_FIELD(gpulet_completion, finished_ns, 48);
GPULET_FIELD(gpulet_completion, batch_rows, 56);
GPULET_FIELD(gpulet_completion, epoch, 60);

#endif /* GPULET_ABI_H */
