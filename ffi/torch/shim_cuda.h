/* The shim's CUDA half: a module placed on a GPU, run there eagerly or captured as a CUDA graph.
 *
 * libgpulet_torch_cuda.so is built beside libgpulet_torch.so, against the same libtorch, and shares
 * its types: a gtorch_module that one made the other may use. It is opened only by a process that
 * runs models on a GPU. The rules of shim.h hold: nothing is thrown, a failure leaves a text, no
 * policy.
 *
 * Memory: a gtorch_tensor here describes device memory that the caller owns, valid until all work
 * on it is done and every graph that was captured over it is freed. Streams are the caller's too
 * (CUstream), of the device's primary context or of a green context of it. Nothing here waits for
 * the device, except where it says so.
 */
#ifndef GPULET_TORCH_SHIM_CUDA_H
#define GPULET_TORCH_SHIM_CUDA_H

#include "shim.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Raised by one whenever anything in this header changes its meaning. */
#define GTORCH_CUDA_ABI 4

/* How a forward computes. */
typedef struct gtorch_precision {
  int32_t dtype;         /* GTORCH_F32, GTORCH_F16 or GTORCH_BF16: what floating weights become */
  int32_t tf32;          /* 1: f32 products may round their operands to TF32 */
  int32_t channels_last; /* 1: images and their filters are kept with channels innermost */
} gtorch_precision;

typedef struct gtorch_graph gtorch_graph;

/* As gtorch_marker, but starting with "gpulet-torch-cuda-shim\n", and with abi (GTORCH_CUDA_ABI). */
GTORCH_API extern const char gtorch_cuda_marker[];

GTORCH_API const char *gtorch_cuda_error_text(void);

/* Make libtorch ready for device `device` of this process; once, before anything else here. */
GTORCH_API int32_t gtorch_cuda_open(int32_t device);

/* A copy of a module with its weights on the device, in the precision given; the module itself
 * stays. Freeze it before: folding is exact in f32 and is not repeated here. */
GTORCH_API int32_t gtorch_cuda_place(const gtorch_module *module, int32_t device,
                                     const gtorch_precision *precision, gtorch_module **placed);

/* Run forward on `stream`. Floating inputs are cast to the precision, floating outputs to what
 * `outputs` say; the rest must match. Returns when the work is queued. */
GTORCH_API int32_t gtorch_cuda_run(const gtorch_module *placed, int32_t device, void *stream,
                                   const gtorch_precision *precision, const gtorch_tensor *inputs,
                                   size_t input_count, const gtorch_tensor *outputs,
                                   size_t output_count);

/* A name for memory that graphs share which never run at the same time. */
GTORCH_API int32_t gtorch_cuda_pool(uint64_t pool[2]);

/* Capture a forward over exactly this memory. Run it eagerly on `stream` a few times before. Fails
 * with GTORCH_MODEL_RAISED where the model cannot be captured (it waits for the device, or draws
 * random numbers); the stream can be used again. */
GTORCH_API int32_t gtorch_cuda_capture(const gtorch_module *placed, int32_t device, void *stream,
                                       const uint64_t pool[2], const gtorch_precision *precision,
                                       const gtorch_tensor *inputs, size_t input_count,
                                       const gtorch_tensor *outputs, size_t output_count,
                                       gtorch_graph **graph);

/* The CUgraph, to be instantiated by the caller and launched on a stream of the context it was captured
 * in. Null where there is none. */
GTORCH_API void *gtorch_cuda_graph_raw(gtorch_graph *graph);

/* What was instantiated of it is gone. Null is allowed. */
GTORCH_API void gtorch_cuda_graph_free(gtorch_graph *graph);

/* Let go of the memory that libtorch keeps for work on `stream`, before the stream is destroyed. None of
 * that work may be unfinished, and no graph that was captured on it may be left. */
GTORCH_API int32_t gtorch_cuda_forget(void *stream);

/* Bytes that libtorch's allocator has from the device, and how many of them are in use. */
GTORCH_API int32_t gtorch_cuda_memory(int32_t device, uint64_t *reserved, uint64_t *allocated);

/* Give unused memory back to the device. Waits for it. */
GTORCH_API int32_t gtorch_cuda_trim(void);

#ifdef __cplusplus
}
#endif

#endif
