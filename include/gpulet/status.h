/* SPDX-License-Identifier: Apache-2.0
 *
 * gpulet/status.h - the status numbers.
 *
 * Every function of client.h returns one of these, and every completion carries one. A decade is a
 * stage of a request's life, so a number in a log tells where it happened. A number is never
 * reused; holes are kept. GPULET_OK is zero, everything else is positive.
 */
#ifndef GPULET_STATUS_H
#define GPULET_STATUS_H

#include <stdint.h>

#define GPULET_OK ((int32_t)0)

/* 1x: how the library was called; nothing was sent. */
#define GPULET_INVALID_ARGUMENT ((int32_t)10) /* a null pointer, a bad size, an unknown flag      */
#define GPULET_WRONG_STATE ((int32_t)11)      /* the request is not in a state that allows this   */
#define GPULET_STALE ((int32_t)12)            /* the request handle is of an earlier use of a slot */
#define GPULET_TIMEOUT ((int32_t)13)          /* nothing came within the time given               */
#define GPULET_OUT_OF_MEMORY ((int32_t)14)    /* this process could not get memory or descriptors */
#define GPULET_FORKED ((int32_t)15)           /* the session belongs to the parent process        */

/* 2x: connecting. */
#define GPULET_NO_DAEMON ((int32_t)20)        /* nobody listens on the socket                     */
#define GPULET_ACCESS_DENIED ((int32_t)21)    /* this user is on no allow list of the daemon      */
#define GPULET_VERSION_MISMATCH ((int32_t)22) /* library and daemon speak different major versions */
#define GPULET_SESSION_LIMIT ((int32_t)23)    /* the daemon has as many sessions as it may        */
#define GPULET_REGION_LIMIT ((int32_t)24)     /* slot_count or slot_bytes is over the limits      */
#define GPULET_BAD_HANDSHAKE ((int32_t)25)    /* the other side sent what is no part of this ABI  */

/* 3x: models. */
#define GPULET_NO_SUCH_MODEL ((int32_t)30)    /* the daemon serves no model of that name          */
#define GPULET_MODEL_LOADING ((int32_t)31)    /* it is being loaded: ask again                    */
#define GPULET_MODEL_FAILED ((int32_t)32)     /* it could not be loaded; the text says why        */
#define GPULET_MODEL_RETIRED ((int32_t)33)    /* it was unloaded or replaced: open it again       */

/* 4x: claiming and submitting. */
#define GPULET_NO_FREE_SLOT ((int32_t)40)     /* every slot is in use: reap and release           */
#define GPULET_SLOT_TOO_SMALL ((int32_t)41)   /* the tensors of so many rows do not fit a slot    */
#define GPULET_TOO_MANY_ROWS ((int32_t)42)    /* more rows than the model's max_batch, or none    */
#define GPULET_QUEUE_FULL ((int32_t)43)       /* back-pressure: the model's queue is full         */
#define GPULET_RING_FULL ((int32_t)44)        /* back-pressure: the submission ring is full       */

/* 5x: the deadline. */
#define GPULET_DEADLINE_HOPELESS ((int32_t)50) /* on arrival: it could not have been met          */
#define GPULET_DEADLINE_EXPIRED ((int32_t)51)  /* while queued: it can not be met any more        */
#define GPULET_CANCELLED ((int32_t)52)         /* the client cancelled it before it ran           */

/* 6x: running. */
#define GPULET_MODEL_ERROR ((int32_t)60)      /* the model raised; the request's text says what   */
#define GPULET_EXECUTOR_MEMORY ((int32_t)61)  /* the executor ran out of memory                   */
#define GPULET_EXECUTOR_LOST ((int32_t)62)    /* the executor died on it twice                    */

/* 7x: the end of a session; the handle can only be closed. */
#define GPULET_PROTOCOL_VIOLATION ((int32_t)70) /* one side wrote what the ABI forbids; see its text */
#define GPULET_DAEMON_GONE ((int32_t)71)        /* the daemon died or hung up                     */
#define GPULET_DRAINING ((int32_t)72)           /* the daemon is stopping and takes nothing new   */

/* 9x: a defect of gpulet; please report it. */
#define GPULET_INTERNAL ((int32_t)90)

#endif /* GPULET_STATUS_H */
