// One forward over device memory, on the caller's stream.
#ifndef GPULET_TORCH_SHIM_DEVICE_RUN_H
#define GPULET_TORCH_SHIM_DEVICE_RUN_H

#include "run.h"

#include "../shim_cuda.h"

#include <ATen/Context.h>
#include <c10/core/InferenceMode.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/api/include/torch/version.h>

namespace gtorch {

// The caller's stream, current on this thread for as long as this lives.
class OnStream {
 public:
  OnStream(int32_t device, void *stream)
      : guard_(c10::cuda::getStreamFromExternal(static_cast<cudaStream_t>(stream),
                                                static_cast<c10::DeviceIndex>(device))) {}

 private:
  c10::cuda::CUDAStreamGuard guard_;
};

inline void set_maths(const gtorch_precision &precision) {
  at::Context &context = at::globalContext();
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 10
  using at::Float32Backend, at::Float32Op, at::Float32Precision;
  const auto want = precision.tf32 != 0 ? Float32Precision::TF32 : Float32Precision::IEEE;
  for (const Float32Op op : {Float32Op::CONV, Float32Op::RNN, Float32Op::MATMUL}) {
    if (context.float32Precision(Float32Backend::CUDA, op) != want)
      context.setFloat32Precision(Float32Backend::CUDA, op, want);
  }
#else
  context.setAllowTF32CuDNN(precision.tf32 != 0);
  context.setAllowTF32CuBLAS(precision.tf32 != 0);
#endif
  // Timing every algorithm at every shape takes seconds a model and made most of them slower.
  context.setBenchmarkCuDNN(false);
}

struct DeviceTensors {
  const gtorch_tensor *at;
  size_t count;
};

// What one forward needs to know; a captured graph repeats it over the same memory.
struct DeviceRun {
  const gtorch_module &module;
  int32_t device;
  gtorch_precision precision;
  DeviceTensors inputs;
  DeviceTensors outputs;

  void check() const {
    require(inputs.at != nullptr || inputs.count == 0, "inputs is null");
    require(outputs.at != nullptr || outputs.count == 0, "outputs is null");
    const gtorch_signature &taken = module.signature;
    if (inputs.count < static_cast<size_t>(taken.input_required) ||
        inputs.count > static_cast<size_t>(taken.input_count))
      refuse(GTORCH_BAD_ARGUMENT, "forward takes ", taken.input_required, " to ",
             taken.input_count, " inputs, ", inputs.count, " were given");
    for (size_t i = 0; i < inputs.count; ++i) check_tensor(inputs.at[i], "input", i);
    for (size_t i = 0; i < outputs.count; ++i) check_tensor(outputs.at[i], "output", i);
  }

  void forward() const {
    const c10::InferenceMode on;
    std::vector<IValue> stack;
    stack.reserve(inputs.count + 1);
    for (size_t i = 0; i < inputs.count; ++i) stack.emplace_back(input(inputs.at[i]));
    Tensors targets;
    for (size_t i = 0; i < outputs.count; ++i) targets.push_back(view(outputs.at[i]));
    if (module.signature.takes_out) {
      const bool single = module.signature.output_count == 1;
      if (single) check_count(1, outputs.count);
      stack.push_back(single ? IValue(targets[0])
                             : IValue(std::vector<Tensor>(targets.begin(), targets.end())));
    }
    const IValue answer = call(module, std::move(stack), false);
    if (module.signature.takes_out) return;
    Tensors got;
    flatten(answer, got);
    check_count(got.size(), outputs.count);
    for (size_t i = 0; i < got.size(); ++i) check(got[i], i);
    for (size_t i = 0; i < got.size(); ++i) targets[i].copy_(got[i], /*non_blocking=*/true);
  }

 private:
  Tensor view(const gtorch_tensor &tensor) const {
    const auto options = at::TensorOptions(scalar_type(tensor.dtype))
                             .device(at::kCUDA, static_cast<c10::DeviceIndex>(device));
    return at::from_blob(tensor.data, sizes_of(tensor), options);
  }

  Tensor input(const gtorch_tensor &tensor) const {
    Tensor given = view(tensor);
    if (given.is_floating_point()) given = given.to(scalar_type(precision.dtype));
    const bool is_image = precision.channels_last != 0 && given.dim() == 4;
    return is_image ? given.contiguous(at::MemoryFormat::ChannelsLast) : given;
  }

  // Truth values and numbers are what they are; of floating point the caller takes any width.
  void check(const Tensor &got, size_t index) const {
    const gtorch_tensor &want = outputs.at[index];
    const at::ScalarType type = scalar_type(want.dtype);
    const bool fits = got.defined() && got.layout() == at::kStrided && got.device().is_cuda();
    if (!fits) refuse(GTORCH_BAD_OUTPUT, "output ", index, ": no dense tensor on the GPU");
    const bool floats = at::isFloatingType(type) && got.is_floating_point();
    if ((!floats && got.scalar_type() != type) || got.sizes() != sizes_of(want))
      refuse(GTORCH_BAD_OUTPUT, "output ", index, ": the model gave ",
             name_of(got.scalar_type()), " ", got.sizes(), ", the caller has room for ",
             name_of(type), " ", sizes_of(want));
  }
};

}  // namespace gtorch

#endif
