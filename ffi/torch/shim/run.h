// One forward: arguments in place, answers checked and stored once.
#ifndef GPULET_TORCH_SHIM_RUN_H
#define GPULET_TORCH_SHIM_RUN_H

#include "signature.h"
#include "tensor.h"

#include <torch/csrc/jit/python/update_graph_executor_opt.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

struct gtorch_module {
  torch::jit::Module module;
  gtorch_signature signature;
};

namespace gtorch {

using at::IValue;

// libtorch keeps this switch by thread. Off, its executor runs the graph as it is; but inlining is
// one level deep then, and freezing removes what the calls it left go to. So each use sets what it
// needs, and puts back what was.
class ExecutorOptimise {
 public:
  explicit ExecutorOptimise(bool on) : before_(torch::jit::getGraphExecutorOptimize()) {
    torch::jit::setGraphExecutorOptimize(on);
  }
  ~ExecutorOptimise() { torch::jit::setGraphExecutorOptimize(before_); }
  ExecutorOptimise(const ExecutorOptimise &) = delete;
  ExecutorOptimise &operator=(const ExecutorOptimise &) = delete;

 private:
  bool before_;
};

template <typename T>
T scalar_from(const gtorch_tensor &tensor, int32_t dtype, const std::string &name) {
  if (tensor.dtype != dtype || tensor.bytes != sizeof(T))
    refuse(GTORCH_BAD_ARGUMENT, "input `", name, "` is a single value in forward: give one ",
           name_of(scalar_type(dtype)), " of shape []");
  T value;
  std::memcpy(&value, tensor.data, sizeof value);
  return value;
}

inline IValue argument(const gtorch_tensor &tensor, const c10::Argument &formal, Lent &lent,
                       gtorch_report &report) {
  const int32_t kind = kind_of(formal.type());
  if (kind == GTORCH_KIND_TENSOR) {
    Tensor view = lent.lend(tensor);
    if (tensor.bytes != 0) {
      const auto low = reinterpret_cast<uint64_t>(view.data_ptr());
      const uint64_t high = low + view.nbytes();
      report.input_lowest = std::min(report.input_lowest ? report.input_lowest : low, low);
      report.input_highest = std::max(report.input_highest, high);
    }
    return IValue(std::move(view));
  }
  report.input_bytes_copied += tensor.bytes;
  switch (kind) {
    case GTORCH_KIND_INT:
      return IValue(scalar_from<int64_t>(tensor, GTORCH_I64, formal.name()));
    case GTORCH_KIND_FLOAT:
      return IValue(static_cast<double>(scalar_from<float>(tensor, GTORCH_F32, formal.name())));
    case GTORCH_KIND_BOOL:
      return IValue(scalar_from<uint8_t>(tensor, GTORCH_BOOL, formal.name()) != 0);
    default:
      refuse(GTORCH_BAD_ARGUMENT, "input `", formal.name(), "` is a ", formal.type()->str(),
             " in forward; only tensors and single values can be given");
  }
}

inline std::vector<IValue> arguments_of(const gtorch_module &m, const gtorch_tensor *inputs,
                                        size_t count, Lent &lent, gtorch_report &report) {
  const auto most = static_cast<size_t>(m.signature.input_count);
  const auto least = static_cast<size_t>(m.signature.input_required);
  if (count < least || count > most)
    refuse(GTORCH_BAD_ARGUMENT, "forward takes ", least, least == most ? "" : " to ",
           least == most ? "" : std::to_string(most), " inputs, ", count, " were given");
  if (m.signature.takes_out && count != most)
    refuse(GTORCH_BAD_ARGUMENT, "forward takes `out` after ", most, " inputs, ", count,
           " were given");
  const auto &formals = forward_schema(m.module).arguments();
  std::vector<IValue> stack;
  stack.reserve(count + 1);
  for (size_t i = 0; i < count; ++i) {
    check_tensor(inputs[i], "input", i);
    stack.push_back(argument(inputs[i], formals[i + 1], lent, report));
  }
  return stack;
}

using Tensors = c10::SmallVector<Tensor, 8>;

inline void flatten(const IValue &value, Tensors &into) {
  if (value.isTensor()) {
    into.push_back(value.toTensor());
  } else if (value.isTuple()) {
    for (const IValue &element : value.toTupleRef().elements()) flatten(element, into);
  } else if (value.isList()) {
    for (const IValue &element : value.toListRef()) flatten(element, into);
  } else if (value.isGenericDict()) {
    for (const auto &entry : value.toGenericDict()) flatten(entry.value(), into);
  } else {
    refuse(GTORCH_BAD_OUTPUT, "output ", into.size(), ": the model gave a ", value.tagKind(),
           ", only tensors can be returned");
  }
}

inline void check_output(const Tensor &got, const gtorch_tensor &want, size_t index) {
  if (!got.defined() || got.layout() != at::kStrided || !got.device().is_cpu())
    refuse(GTORCH_BAD_OUTPUT, "output ", index, ": the model gave no dense tensor in main memory");
  const at::ScalarType type = scalar_type(want.dtype);
  if (got.scalar_type() != type || got.sizes() != sizes_of(want))
    refuse(GTORCH_BAD_OUTPUT, "output ", index, ": the model gave ", name_of(got.scalar_type()),
           " ", got.sizes(), ", the caller has room for ", name_of(type), " ", sizes_of(want));
}

inline void check_count(size_t got, size_t want) {
  if (got != want)
    refuse(GTORCH_BAD_OUTPUT, "the model gave ", got, " outputs, the caller has room for ", want);
}

inline void store(const Tensor &got, const gtorch_tensor &want, gtorch_report &report) {
  const bool dense = got.is_contiguous() && !got.is_neg();
  if (want.bytes == 0 || (dense && got.data_ptr() == want.data)) {
    report.outputs_in_place += want.bytes != 0;
    return;
  }
  if (dense) {
    // The model may return a view of an input that shares memory with this output.
    std::memmove(want.data, got.data_ptr(), want.bytes);
  } else {
    at::from_blob(want.data, sizes_of(want), got.scalar_type()).copy_(got);
  }
  report.output_bytes_copied += want.bytes;
}

inline IValue call(const gtorch_module &m, std::vector<IValue> stack, bool profile) {
  // Profiling recompiles on the first calls of every shape, which a deadline cannot afford.
  const ExecutorOptimise guard(profile);
  return m.module.get_method("forward")(std::move(stack));
}

inline void run(const gtorch_module &m, const gtorch_tensor *inputs, size_t input_count,
                const gtorch_tensor *outputs, size_t output_count, bool profile,
                gtorch_report &report) {
  Lent lent;
  for (size_t i = 0; i < output_count; ++i) check_tensor(outputs[i], "output", i);
  {
    std::vector<IValue> stack = arguments_of(m, inputs, input_count, lent, report);
    Tensors targets;
    if (m.signature.takes_out) {
      for (size_t i = 0; i < output_count; ++i) targets.push_back(lent.lend(outputs[i]));
      const bool single = m.signature.output_count == 1;
      if (single) check_count(1, output_count);
      stack.push_back(single ? IValue(targets[0])
                             : IValue(std::vector<Tensor>(targets.begin(), targets.end())));
    }
    const IValue answer = call(m, std::move(stack), profile);
    Tensors got;
    if (!answer.isNone() || !m.signature.takes_out) flatten(answer, got);
    // With `out` the return value is a courtesy: what counts is what was filled.
    if (m.signature.takes_out && got.empty()) got = targets;
    check_count(got.size(), output_count);
    for (size_t i = 0; i < output_count; ++i) {
      if (m.signature.takes_out) check_output(targets[i], outputs[i], i);
      check_output(got[i], outputs[i], i);
    }
    for (size_t i = 0; i < output_count; ++i) store(got[i], outputs[i], report);
  }
  report.input_bytes_copied += lent.take_back();
}

inline void describe(const Tensor &tensor, size_t index, gtorch_tensor &into) {
  into = gtorch_tensor{};
  into.dtype = dtype_of(tensor.scalar_type());
  into.rank = static_cast<int32_t>(tensor.dim());
  if (into.dtype == 0 || tensor.dim() > GTORCH_RANK_MAX)
    refuse(GTORCH_BAD_OUTPUT, "output ", index, ": ", name_of(tensor.scalar_type()), " ",
           tensor.sizes(),
           " is outside the dtypes and the 8 dimensions that are served");
  into.bytes = tensor.numel() * tensor.element_size();
  std::copy(tensor.sizes().begin(), tensor.sizes().end(), into.dims);
}

inline void probe(const gtorch_module &m, const gtorch_tensor *inputs, size_t input_count,
                  gtorch_tensor *outputs, size_t capacity, size_t &count) {
  Lent lent;
  {
    gtorch_report ignored{};
    require(!m.signature.takes_out, "a model that takes `out` cannot be probed");
    const IValue answer = call(m, arguments_of(m, inputs, input_count, lent, ignored), false);
    Tensors got;
    flatten(answer, got);
    for (size_t i = 0; i < got.size() && i < capacity; ++i) describe(got[i], i, outputs[i]);
    count = got.size();
  }
  lent.take_back();
}

}  // namespace gtorch

#endif
