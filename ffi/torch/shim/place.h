// From a frozen module on the CPU to a copy of it on a GPU.
#ifndef GPULET_TORCH_SHIM_PLACE_H
#define GPULET_TORCH_SHIM_PLACE_H

#include "run.h"

#include "../shim_cuda.h"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

namespace gtorch {

// Where a placed module's tensors go, and what becomes of them on the way.
class Place {
 public:
  Place(int32_t device, const gtorch_precision &precision)
      : device_(at::kCUDA, static_cast<c10::DeviceIndex>(device)),
        dtype_(scalar_type(precision.dtype)),
        channels_last_(precision.channels_last != 0) {}

  gtorch_module *move(const gtorch_module &from) const {
    // Tensors that are still attributes would be shared with the original: those get copies.
    const bool has_attributes = from.module.parameters().size() + from.module.buffers().size() > 0;
    torch::jit::Module module = from.module.clone(/*inplace=*/!has_attributes);
    for (Tensor tensor : module.parameters()) tensor.set_data(moved(tensor));
    for (Tensor tensor : module.buffers()) tensor.set_data(moved(tensor));
    auto *function = torch::jit::tryToGraphFunction(module.get_method("forward").function());
    if (function == nullptr) refuse(GTORCH_BAD_ARCHIVE, "forward is not TorchScript");
    rewrite(function->graph()->block());
    torch::jit::EliminateDeadCode(function->graph());
    return new gtorch_module{std::move(module), from.signature};
  }

 private:
  Tensor moved(const Tensor &tensor) const {
    Tensor there = tensor.to(device_, tensor.is_floating_point() ? dtype_ : tensor.scalar_type());
    const bool is_filter = channels_last_ && there.dim() == 4;
    return is_filter ? there.contiguous(at::MemoryFormat::ChannelsLast) : there;
  }

  // Freezing made weights constants of the graph; tracing made constants of every device and, for
  // what was created on the fly, of tensors. All of them must name the GPU. A tensor of no
  // dimensions stays where it is: operators take it as the number that it is, without waiting.
  void rewrite(torch::jit::Block *block) const {
    for (auto *step : block->nodes()) {
      for (torch::jit::Block *inner : step->blocks()) rewrite(inner);
      if (step->kind() == torch::jit::aten::_convolution) ask_context(step);
      if (step->kind() != torch::jit::prim::Constant || step->mustBeNone()) continue;
      const std::optional<IValue> value = torch::jit::toIValue(step->output());
      if (!value) continue;
      if (value->isDevice()) {
        replace(step, IValue(device_));
      } else if (value->isTensor() && value->toTensor().dim() > 0) {
        replace(step, IValue(moved(value->toTensor())));
      } else if (value->isTensorList()) {
        replace(step, IValue(moved_all(value->toTensorList())));
      }
    }
  }

  // Tracing wrote down what the exporting process allowed a convolution: TF32, almost always. That
  // is for whoever runs the model to say, as set_maths does.
  template <typename Step>
  static void ask_context(Step *traced) {
    constexpr size_t settings_begin = 9;  // benchmark, deterministic, cudnn_enabled, allow_tf32
    torch::jit::WithInsertPoint before(traced);
    torch::jit::Graph *graph = traced->owningGraph();
    auto *asks = graph->insertNode(graph->create(torch::jit::aten::convolution));
    for (size_t index = 0; index < settings_begin; ++index) asks->addInput(traced->input(index));
    asks->copyMetadata(traced);
    asks->output()->copyMetadata(traced->output());
    traced->output()->replaceAllUsesWith(asks->output());
  }

  c10::List<Tensor> moved_all(const c10::List<Tensor> &tensors) const {
    c10::List<Tensor> there;
    for (const Tensor &tensor : tensors) there.push_back(moved(tensor));
    return there;
  }

  template <typename Step>
  static void replace(Step *step, const IValue &value) {
    torch::jit::WithInsertPoint before(step);
    step->output()->replaceAllUsesWith(torch::jit::insertConstant(*step->owningGraph(), value));
  }

  at::Device device_;
  at::ScalarType dtype_;
  bool channels_last_;
};

}  // namespace gtorch

#endif
