/* The libtorch shim: what crosses between Rust and libtorch's C++.
 *
 * libgpulet_torch.so holds these functions and nothing else. It is opened at run time, after
 * libtorch itself, so a program that never runs a model needs neither. No C++ exception leaves
 * it: every function returns a gtorch_status, and on a failure gtorch_error_text() says why.
 * It holds no policy: it does what it is asked, once, and reports what it did.
 *
 * Memory: tensors are described by gtorch_tensor over memory that the caller owns. The caller
 * keeps that memory valid during the call; nothing in the shim or in libtorch points to it after.
 *
 * Threads: unless a function says otherwise, any thread may call it at any time, but one
 * gtorch_module must not be changed (freeze, optimise, free) while another call uses it.
 */
#ifndef GPULET_TORCH_SHIM_H
#define GPULET_TORCH_SHIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GTORCH_API __attribute__((visibility("default")))

/* Raised by one whenever anything in this header changes its meaning. */
#define GTORCH_ABI 1

/* What every function but gtorch_error_text and gtorch_module_free returns. */
enum gtorch_status {
  GTORCH_OK = 0,
  GTORCH_BAD_PATH = 1,      /* the file cannot be opened, read or written */
  GTORCH_BAD_ARCHIVE = 2,   /* the bytes are no TorchScript archive that this libtorch can load */
  GTORCH_BAD_ARGUMENT = 3,  /* null, out of range, or not what the model's forward takes */
  GTORCH_BAD_OUTPUT = 4,    /* the model's answer differs in count, shape or dtype from outputs */
  GTORCH_MODEL_RAISED = 5,  /* the model stopped: an assert of its own, or an operator refused */
  GTORCH_OUT_OF_MEMORY = 6, /* libtorch could not allocate; the module can be used again */
  GTORCH_INTERNAL = 7       /* anything else libtorch threw */
};

enum gtorch_dtype {
  GTORCH_F32 = 1,
  GTORCH_F16 = 2,
  GTORCH_BF16 = 3,
  GTORCH_I64 = 4,
  GTORCH_I32 = 5,
  GTORCH_U8 = 6,
  GTORCH_BOOL = 7
};

/* The kind of one argument of forward. */
enum gtorch_kind {
  GTORCH_KIND_TENSOR = 1,
  GTORCH_KIND_INT = 2,   /* given as an i64 tensor of one element */
  GTORCH_KIND_FLOAT = 3, /* given as an f32 tensor of one element */
  GTORCH_KIND_BOOL = 4,  /* given as a bool tensor of one element */
  GTORCH_KIND_OTHER = 5  /* cannot be given */
};

#define GTORCH_RANK_MAX 8

/* A dense row-major tensor over the caller's memory; bytes = product of dims * size of dtype. */
typedef struct gtorch_tensor {
  void *data;
  uint64_t bytes;
  int32_t dtype; /* gtorch_dtype */
  int32_t rank;  /* 0 .. GTORCH_RANK_MAX; 0 is a single value */
  int64_t dims[GTORCH_RANK_MAX];
} gtorch_tensor;

/* What forward takes and gives, as its schema states it. */
typedef struct gtorch_signature {
  int32_t input_count;    /* arguments, without self and without `out` */
  int32_t input_required; /* of these, the leading ones with no default */
  int32_t output_count;   /* -1: known only once the model ran */
  int32_t takes_out;      /* 1: the last argument is named `out` and is filled by the model */
  int32_t mutates;        /* 1: forward may change the module, so calls must not overlap */
  int32_t reserved;       /* 0 */
  uint64_t weight_bytes;  /* parameters and buffers, as loaded */
} gtorch_signature;

/* What one run did, measured on the tensors libtorch really used. */
typedef struct gtorch_report {
  uint64_t input_bytes_copied;  /* scalars, and inputs that the model keeps after it returned */
  uint64_t output_bytes_copied; /* 0 where the model wrote into the caller's memory itself */
  uint64_t outputs_in_place;    /* how many outputs were there already when forward returned */
  uint64_t input_lowest;        /* lowest address the input tensors read from; 0: no input */
  uint64_t input_highest;       /* one past the highest */
} gtorch_report;

/* Flags of gtorch_module_run. */
#define GTORCH_RUN_PROFILE 1u /* let the profiling executor specialise: slow first calls */

typedef struct gtorch_module gtorch_module;

/* Text in the shim's file, to be read before anything is loaded. After "gpulet-torch-shim\n" come
 * lines key=value, up to a NUL: abi (GTORCH_ABI), version (of the libtorch compiled against) and
 * libtorch (absolute path of the library to be opened first). */
GTORCH_API extern const char gtorch_marker[];

/* Why the last call on this thread failed, UTF-8, valid until the next call on this thread. */
GTORCH_API const char *gtorch_error_text(void);

/* libtorch's own description of its build: version, maths libraries, threading. Cut at size. */
GTORCH_API int32_t gtorch_config(char *text, size_t size);

/* Threads one operator may use, in this thread and in those that run their first operator later.
 * Call it before other threads run models. */
GTORCH_API int32_t gtorch_set_threads(int32_t count);

/* Threads for parallel parts of one model; once in a process, before the first model runs. */
GTORCH_API int32_t gtorch_set_interop_threads(int32_t count);

GTORCH_API int32_t gtorch_threads(int32_t *intra, int32_t *interop);

/* Load an archive, put it in eval mode. From a buffer, records are read straight out of the
 * caller's bytes; weights are then libtorch's own, and the buffer may go once the call is over. */
GTORCH_API int32_t gtorch_module_load_path(const char *path, gtorch_module **module);
GTORCH_API int32_t gtorch_module_load_buffer(const void *data, size_t size,
                                             gtorch_module **module);

/* Make a module from TorchScript source (methods of a class, `forward` among them), from buffers
 * that are copied into it, and from other modules that it shares, all under their names. */
GTORCH_API int32_t gtorch_module_define(const char *source, const char *const *names,
                                        const gtorch_tensor *values, size_t count,
                                        const char *const *child_names,
                                        const gtorch_module *const *children, size_t child_count,
                                        gtorch_module **module);

/* An optimised module can be written, but libtorch does not read it again. */
GTORCH_API int32_t gtorch_module_save(const gtorch_module *module, const char *path);

/* Fold weights into the graph; on a failure the module is as it was. */
GTORCH_API int32_t gtorch_module_freeze(gtorch_module *module);

/* Freeze, then rewrite for this machine's CPU; on a failure the module is as it was. */
GTORCH_API int32_t gtorch_module_optimise(gtorch_module *module);

GTORCH_API int32_t gtorch_module_signature(const gtorch_module *module, gtorch_signature *out);

/* Argument `index` of forward (self not counted): its kind, and its name cut at size. */
GTORCH_API int32_t gtorch_module_input(const gtorch_module *module, size_t index, int32_t *kind,
                                       char *name, size_t size);

/* Run forward. Inputs are seen in place, never copied: a model that changes its input in place
 * changes the caller's memory. Outputs are checked, all before the first is written, then copied
 * once; where forward takes `out` it gets the caller's memory. Needs mutates = 0, or one call at
 * a time. */
GTORCH_API int32_t gtorch_module_run(const gtorch_module *module, const gtorch_tensor *inputs,
                                     size_t input_count, const gtorch_tensor *outputs,
                                     size_t output_count, uint32_t flags, gtorch_report *report);

/* Run forward and say what it gave: dtype, dims and bytes of up to `capacity` outputs, data left
 * null; `count` is how many there were. Not for a model that takes `out`. */
GTORCH_API int32_t gtorch_module_probe(const gtorch_module *module, const gtorch_tensor *inputs,
                                       size_t input_count, gtorch_tensor *outputs,
                                       size_t capacity, size_t *count);

/* Null is allowed. */
GTORCH_API void gtorch_module_free(gtorch_module *module);

#ifdef __cplusplus
}
#endif

#endif
