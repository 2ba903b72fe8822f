/* SPDX-License-Identifier: Apache-2.0
 *
 * gpulet/client.h - handles and functions, in the order a program calls them.
 *
 * Rules of the whole API (threads, ownership, lifetimes, fork, signals) are in gpulet.h; a function
 * states only what is special about it. Every function that can fail returns a status of status.h;
 * out-parameters come last and are written only on success unless it says otherwise.
 */
#ifndef GPULET_CLIENT_H
#define GPULET_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#include "gpulet/abi.h"
#include "gpulet/status.h"

#if defined(__GNUC__)
#define GPULET_API __attribute__((visibility("default")))
#else
#define GPULET_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- The library ------------------------------------------------------------------------------ */

/* The version of the ABI that the library was built with, GPULET_ABI_VERSION at that time.
 * Threads: any, at any time. Async-signal-safe. */
GPULET_API uint32_t gpulet_abi_version(void);

/* The version of the library, such as "0.1.0". Static storage.
 * Threads: any, at any time. Async-signal-safe. */
GPULET_API const char *gpulet_library_version(void);

/* One sentence about a status; never null, also for unknown numbers. Static storage.
 * Threads: any, at any time. Async-signal-safe. */
GPULET_API const char *gpulet_status_text(int32_t status);

/* The details of the last failure of a gpulet function in this thread ("" if there was none): which
 * argument, file or peer, and which rule. Valid until the thread's next gpulet call.
 * Threads: each has its own. */
GPULET_API const char *gpulet_error_text(void);

/* Now, on the clock of deadlines: CLOCK_MONOTONIC in nanoseconds.
 * Threads: any, at any time. Async-signal-safe. */
GPULET_API uint64_t gpulet_now_ns(void);

/* ---- Sessions --------------------------------------------------------------------------------- */

/* One connection with one region. */
typedef struct gpulet_session gpulet_session;

/* How gpulet_wait waits. */
#define GPULET_WAIT_BLOCK 0u /* sleep in the kernel; wakes in about ten microseconds           */
#define GPULET_WAIT_SPIN 1u  /* never sleep: lowest latency, takes a whole core                */
#define GPULET_WAIT_HYBRID 2u /* spin for spin_ns, then sleep                                  */

/* Zero it, set struct_bytes, then whatever should differ from the defaults. */
struct gpulet_session_options {
  uint32_t struct_bytes;   /* sizeof(struct gpulet_session_options)                            */
  uint32_t wait;           /* GPULET_WAIT_...; default GPULET_WAIT_BLOCK                       */
  const char *socket_path; /* default: $GPULET_SOCKET, else /run/gpulet/gpuletd.sock           */
  uint64_t slot_bytes;     /* bytes for all tensors of one request; default: the daemon's choice,
                              enough for one row of any of its models                          */
  uint32_t slot_count;     /* requests that can be claimed or in flight at a time; default 64  */
  uint32_t reserved0;
  uint64_t spin_ns;        /* for GPULET_WAIT_HYBRID; default 20,000                           */
  uint64_t connect_timeout_ns; /* for the whole handshake, and for each gpulet_model_open;
                                  default 5 s                                                  */
};

/* Connects. options may be null: all defaults.
 * Fails with a status of decade 2x, or with GPULET_TIMEOUT if the daemon is there but does not
 * answer. Blocks for connect_timeout_ns at most. */
GPULET_API int32_t gpulet_session_open(const struct gpulet_session_options *options,
                                       gpulet_session **session);

/* Ends the session and frees everything that came from it: requests in flight are dropped by the
 * daemon, every pointer into a slot is dead. Null is allowed. */
GPULET_API void gpulet_session_close(gpulet_session *session);

/* What the daemon granted. */
struct gpulet_grant {
  uint64_t session;    /* the number by which the daemon's log names this session */
  uint64_t slot_bytes;
  uint32_t slot_count;
  uint32_t abi_version; /* the daemon's */
  uint64_t features;    /* those of both sides: GPULET_FEATURE_... */
};
GPULET_API int32_t gpulet_session_info(const gpulet_session *session,
                                       struct gpulet_grant *grant);

/* Whether the session lives: GPULET_OK, or the status of decade 7x that ended it. Looks at the
 * socket, so it costs a system call. */
GPULET_API int32_t gpulet_session_check(gpulet_session *session);

/* ---- Models ----------------------------------------------------------------------------------- */

/* Asks for a model by name and describes its tensors (abi.h: gpulet_model_spec; `model` names it in
 * gpulet_request_claim). Blocks for a round trip on the socket, connect_timeout_ns at most; do it
 * once, not for each request. Fails with a status of decade 3x, or with GPULET_TIMEOUT. */
GPULET_API int32_t gpulet_model_open(gpulet_session *session, const char *name,
                                     struct gpulet_model_spec *spec);

/* Bytes of slot that `rows` rows of a model take. */
GPULET_API int32_t gpulet_model_slot_bytes(const struct gpulet_model_spec *spec, uint32_t rows,
                                           uint64_t *bytes);

/* ---- Requests --------------------------------------------------------------------------------- */

/* One use of one slot. A value: copy it freely, nothing needs freeing but the slot itself, by
 * gpulet_request_release. A handle kept beyond that is recognised (GPULET_STALE). */
typedef struct gpulet_request {
  uint32_t slot;
  uint32_t generation;
} gpulet_request;

/* Memory in the slot. data is aligned to GPULET_TENSOR_ALIGN and valid until the request is
 * released; write inputs only before submission, read outputs only after completion. */
struct gpulet_tensor {
  void *data;
  uint64_t bytes; /* rows x row_bytes */
  uint32_t dtype;
  uint32_t rank;
  int64_t dims[GPULET_DIMS_MAX]; /* dims[0] is the rows of this request */
};

/* Takes a slot for `rows` rows of a model that was opened in this session.
 * Fails with GPULET_NO_FREE_SLOT, GPULET_SLOT_TOO_SMALL, GPULET_TOO_MANY_ROWS,
 * GPULET_NO_SUCH_MODEL. */
GPULET_API int32_t gpulet_request_claim(gpulet_session *session, uint32_t model, uint32_t rows,
                                        gpulet_request *request);

/* Where an input, or an output, of the request lies. */
GPULET_API int32_t gpulet_request_input(gpulet_session *session, gpulet_request request,
                                        uint32_t index, struct gpulet_tensor *tensor);
GPULET_API int32_t gpulet_request_output(gpulet_session *session, gpulet_request request,
                                         uint32_t index, struct gpulet_tensor *tensor);

/* Zero it, set struct_bytes, then whatever should differ from the defaults. */
struct gpulet_submit_options {
  uint32_t struct_bytes; /* sizeof(struct gpulet_submit_options)                               */
  uint32_t flags;        /* GPULET_SUBMIT_HELD                                                 */
  uint64_t deadline_ns;  /* absolute, on gpulet_now_ns's clock; default: the model's slo_ns from
                            when the daemon takes the request                                  */
  uint64_t user_data;    /* comes back in the completion                                       */
};

/* Do not publish yet: the next submit without this flag, or gpulet_flush, publishes all held ones
 * with one store and at most one wake-up. */
#define GPULET_SUBMIT_HELD 1u

/* Hands a claimed request to the daemon. options may be null: all defaults.
 * Never blocks; GPULET_RING_FULL leaves the request claimed. Its answer, whatever it is, comes as a
 * completion. */
GPULET_API int32_t gpulet_submit(gpulet_session *session, gpulet_request request,
                                 const struct gpulet_submit_options *options);

/* Publishes held submissions. */
GPULET_API int32_t gpulet_flush(gpulet_session *session);

/* Asks the daemon to drop a submitted request; held submissions are published first. Its completion
 * still comes: with GPULET_CANCELLED, or with its answer if it was too late to cancel, as it always
 * is with a daemon without GPULET_FEATURE_CANCEL. Never blocks. */
GPULET_API int32_t gpulet_cancel(gpulet_session *session, gpulet_request request);

/* ---- Answers ---------------------------------------------------------------------------------- */

/* Takes up to `max` completions (abi.h: gpulet_completion) without waiting or any system call;
 * writes how many into *count, which may be 0. Each is for the request {slot, generation}.
 * Fails with a status of decade 7x once the session has ended and nothing is left to take. Without a
 * system call the death of a daemon that left no word goes unseen, so a program that only ever reaps
 * calls gpulet_session_check now and then. */
GPULET_API int32_t gpulet_reap(gpulet_session *session, struct gpulet_completion *completions,
                               uint32_t max, uint32_t *count);

/* The same, but waits, as the session's `wait` says, until there is at least one, for timeout_ns at
 * most (0: do not wait; UINT64_MAX: for ever). Held submissions are published first.
 * Fails with GPULET_TIMEOUT, or a status of decade 7x. A signal handler's return does not end it. */
GPULET_API int32_t gpulet_wait(gpulet_session *session, struct gpulet_completion *completions,
                               uint32_t max, uint64_t timeout_ns, uint32_t *count);

/* A descriptor for poll, epoll or select: readable when completions came after gpulet_arm, and when
 * the session ended. Owned by the session; do not read, write or close it. */
GPULET_API int32_t gpulet_session_fd(const gpulet_session *session, int *fd);

/* Asks for the next completion to make the descriptor readable; held submissions are published
 * first. Call it after gpulet_reap gave 0 and before polling; *ready is 1 if completions are there
 * already (then reap, do not poll). Fails with a status of decade 7x once the session has ended and
 * nothing is left to take.
 *   loop: reap until 0; arm; if (!ready) epoll_wait; */
GPULET_API int32_t gpulet_arm(gpulet_session *session, uint32_t *ready);

/* What the model or the executor said about a completed request whose status is of decade 6x, as
 * UTF-8, cut to fit: copied into text, which always gets a final NUL. Any other request is in the
 * wrong state for it. */
GPULET_API int32_t gpulet_request_error(gpulet_session *session, gpulet_request request, char *text,
                                        size_t text_bytes);

/* Gives the slot of a claimed or completed request back. Not allowed while it is submitted
 * (GPULET_WRONG_STATE): cancel it and reap its completion first. */
GPULET_API int32_t gpulet_request_release(gpulet_session *session, gpulet_request request);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* GPULET_CLIENT_H */
