/* SPDX-License-Identifier: Apache-2.0
 *
 * gpulet.h - the client of gpuletd, the GPU inference daemon. Include this one.
 *
 *     cc -std=c11 program.c $(pkg-config --cflags --libs gpulet)
 *
 * A program opens a session, opens a model by name, claims a request, writes its inputs straight
 * into shared memory, submits, waits, reads the outputs where the model put them, and releases:
 *
 *     gpulet_session *session;
 *     struct gpulet_model_spec model;
 *     gpulet_request request;
 *     struct gpulet_tensor input, output;
 *     struct gpulet_completion answer;
 *     uint32_t count;
 *
 *     gpulet_session_open(NULL, &session);
 *     gpulet_model_open(session, "digits", &model);
 *     gpulet_request_claim(session, model.model, 1, &request);
 *     gpulet_request_input(session, request, 0, &input);
 *     fill(input.data, input.bytes);
 *     gpulet_submit(session, request, NULL);
 *     gpulet_wait(session, &answer, 1, UINT64_MAX, &count);
 *     if (answer.status == GPULET_OK) {
 *       gpulet_request_output(session, request, 0, &output);
 *       use(output.data, output.bytes);
 *     }
 *     gpulet_request_release(session, request);
 *     gpulet_session_close(session);
 *
 * (Each call's status left unchecked here for space; check them.)
 *
 * The manual
 *
 * Threads. A session and everything that came from it belong to one thread at a time. It may move to
 *   another thread, with whatever synchronisation a program uses for that; two threads must never be
 *   in it at once. Programs with several threads open a session in each: sessions are cheap, and
 *   nothing is shared between them. Functions that take no session are safe in any thread.
 *
 * Ownership. The library owns sessions, from gpulet_session_open to gpulet_session_close, and the
 *   memory of slots. The program owns everything it passes in, and the library keeps no pointer to it
 *   after the call. gpulet_request, specs, tensors and completions are plain values.
 *
 * Lifetimes. A slot is the program's from claim to submit and from completion to release, the
 *   daemon's in between. Writing to a slot while the daemon has it makes the answer meaningless, for
 *   this program only. Pointers into slots die with gpulet_session_close.
 *
 * Answers. Every successful gpulet_submit yields exactly one completion while the session lives, in
 *   any order. A deadline is absolute and covers everything: a request that can not be answered in
 *   time is answered early with a status of decade 5x; one that was answered late although it
 *   looked possible carries GPULET_COMPLETION_LATE and its valid outputs.
 *
 * Back-pressure. Nothing blocks and nothing is lost: a full ring, queue or arena is a status.
 *
 * The end. When the daemon stops, dies, or ends the session for cause, functions that need it
 *   return a status of decade 7x; open a new session to reconnect. Completions that came before can
 *   still be reaped, and the outputs of completed requests read, until the session is closed.
 *
 * Fork. The child must not use a session of the parent (GPULET_FORKED); it may close it, which frees
 *   the child's copy and leaves the parent's session alone. Descriptors are close-on-exec.
 *
 * Signals. No function is async-signal-safe unless it says so; none installs a handler, raises
 *   SIGPIPE or returns early because of a signal. The library starts no thread.
 *
 * Errors. Functions return an int32_t status; gpulet_error_text tells the details of this thread's
 *   last failure. The library never prints, never aborts on bad input, and lets no panic or
 *   exception out.
 *
 * Versions. Programs built against an older minor version go on working: structs with struct_bytes
 *   may grow, other structs and status numbers never change within a major version, and the SONAME
 *   changes with it.
 */
#ifndef GPULET_H
#define GPULET_H

#define GPULET_VERSION_MAJOR 0
#define GPULET_VERSION_MINOR 1
#define GPULET_VERSION_PATCH 0
#define GPULET_VERSION "0.1.0"

#include "gpulet/abi.h"
#include "gpulet/client.h"
#include "gpulet/status.h"

#endif /* GPULET_H */
