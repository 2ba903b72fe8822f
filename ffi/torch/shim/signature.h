// What a model's forward takes and gives, and whether it changes the model.
#ifndef GPULET_TORCH_SHIM_SIGNATURE_H
#define GPULET_TORCH_SHIM_SIGNATURE_H

#include "fence.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <vector>

namespace gtorch {

using at::Tensor;

inline const c10::FunctionSchema &forward_schema(const torch::jit::Module &module) {
  return module.get_method("forward").function().getSchema();
}

inline bool is_tensor(const c10::TypePtr &type) {
  return type->isSubtypeOf(*c10::TensorType::get());
}

inline bool is_maybe_tensor(const c10::TypePtr &type) {
  return is_tensor(type) || type->isSubtypeOf(*c10::OptionalType::ofTensor());
}

inline bool is_tensor_list(const c10::TypePtr &type) {
  return type->isSubtypeOf(*c10::ListType::ofTensors());
}

inline int32_t kind_of(const c10::TypePtr &type) {
  if (is_maybe_tensor(type)) return GTORCH_KIND_TENSOR;
  switch (type->kind()) {
    case c10::TypeKind::IntType: return GTORCH_KIND_INT;
    case c10::TypeKind::FloatType: return GTORCH_KIND_FLOAT;
    case c10::TypeKind::BoolType: return GTORCH_KIND_BOOL;
    default: return GTORCH_KIND_OTHER;
  }
}

inline int32_t outputs_of(const c10::FunctionSchema &schema) {
  if (schema.returns().size() != 1) return -1;
  const c10::TypePtr &type = schema.returns()[0].type();
  if (is_tensor(type)) return 1;
  if (const auto tuple = type->cast<c10::TupleType>()) {
    for (const auto &element : tuple->elements()) {
      if (!is_tensor(element)) return -1;
    }
    return static_cast<int32_t>(tuple->elements().size());
  }
  return -1;
}

// True when forward assigns an attribute, or writes in place into anything read from one.
inline bool mutates_itself(const torch::jit::Module &module) {
  const auto *function = torch::jit::tryToGraphFunction(module.get_method("forward").function());
  if (function == nullptr) return true;
  auto graph = function->graph()->copy();
  torch::jit::Inline(*graph);
  const torch::jit::AliasDb aliases(graph);
  std::vector<torch::jit::Block *> blocks{graph->block()};
  while (!blocks.empty()) {
    torch::jit::Block *block = blocks.back();
    blocks.pop_back();
    for (auto *step : block->nodes()) {
      if (step->kind() == c10::prim::SetAttr || step->kind() == c10::prim::CallMethod) return true;
      const bool reads = step->kind() == c10::prim::GetAttr;
      if (reads && aliases.hasWriters(step->output())) return true;
      for (torch::jit::Block *inner : step->blocks()) blocks.push_back(inner);
    }
  }
  return false;
}

inline gtorch_signature signature_of(const torch::jit::Module &module) {
  if (!module.find_method("forward")) refuse(GTORCH_BAD_ARCHIVE, "the model has no forward");
  const c10::FunctionSchema &schema = forward_schema(module);
  const auto &arguments = schema.arguments();
  gtorch_signature signature{};
  if (arguments.size() > 1) {
    const c10::Argument &last = arguments.back();
    const bool can_fill = is_maybe_tensor(last.type()) || is_tensor_list(last.type());
    signature.takes_out = last.name() == "out" && can_fill;
  }
  signature.input_count = static_cast<int32_t>(arguments.size()) - 1 - signature.takes_out;
  for (int32_t i = 0; i < signature.input_count; ++i) {
    if (arguments[i + 1].default_value()) break;
    signature.input_required = i + 1;
  }
  const bool one_out = signature.takes_out && is_maybe_tensor(arguments.back().type());
  signature.output_count = one_out ? 1 : signature.takes_out ? -1 : outputs_of(schema);
  signature.mutates = mutates_itself(module);
  for (const Tensor &t : module.parameters()) signature.weight_bytes += t.nbytes();
  for (const Tensor &t : module.buffers()) signature.weight_bytes += t.nbytes();
  return signature;
}

}  // namespace gtorch

#endif
