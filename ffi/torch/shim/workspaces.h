// What libtorch keeps for every stream that cuBLAS ran on: a workspace, for ever.
#ifndef GPULET_TORCH_SHIM_WORKSPACES_H
#define GPULET_TORCH_SHIM_WORKSPACES_H

#include <ATen/core/TensorBase.h>
#include <torch/csrc/api/include/torch/version.h>

#include <map>
#include <mutex>
#include <shared_mutex>
#include <tuple>

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11
#define GTORCH_HAS_WORKSPACES 1
// As in ATen/cuda/CUDAContextLight.h, which takes the headers of cuBLAS, cuSPARSE and cuSOLVER along.
namespace at::cuda {
struct WorkspaceMapWithMutex {
  std::map<std::tuple<void *, void *>, at::DataPtr> map;
  std::shared_mutex mutex;
};
TORCH_CUDA_CPP_API WorkspaceMapWithMutex &cublas_handle_stream_to_workspace();
TORCH_CUDA_CPP_API WorkspaceMapWithMutex &cublaslt_handle_stream_to_workspace();
}  // namespace at::cuda
#endif

namespace gtorch {

// Other versions keep theirs, as they do when a program of their own destroys a stream.
inline void forget_workspaces([[maybe_unused]] void *stream) {
#ifdef GTORCH_HAS_WORKSPACES
  for (auto *all : {&at::cuda::cublas_handle_stream_to_workspace(),
                    &at::cuda::cublaslt_handle_stream_to_workspace()}) {
    const std::unique_lock<std::shared_mutex> lock(all->mutex);
    std::erase_if(all->map, [&](const auto &one) { return std::get<1>(one.first) == stream; });
  }
#endif
}

}  // namespace gtorch

#endif
