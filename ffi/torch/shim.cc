// The C++ half of shim.h. It must compile unchanged with libtorch 1.13 and with 2.x, so it keeps
// to what both have, and includes one header an operator: the rest of ATen doubles compile time.
#include "shim.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>
#include <caffe2/serialize/read_adapter_interface.h>
#include <torch/csrc/api/include/torch/version.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/python/update_graph_executor_opt.h>
#include <torch/csrc/jit/serialization/import.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#ifndef GTORCH_LIBTORCH
#error "GTORCH_LIBTORCH must be the absolute path of the libtorch_cpu library compiled against"
#endif

#define GTORCH_TEXT(x) #x
#define GTORCH_NUMBER(x) GTORCH_TEXT(x)

const char gtorch_marker[] =
    "gpulet-torch-shim\nabi=" GTORCH_NUMBER(GTORCH_ABI) "\nversion=" TORCH_VERSION
    "\nlibtorch=" GTORCH_LIBTORCH "\n";

struct gtorch_module {
  torch::jit::Module module;
  gtorch_signature signature;
};

namespace {

using at::IValue;
using at::Tensor;

thread_local char error_text[4096];

int32_t fail(int32_t status, const char *text) noexcept {
  std::snprintf(error_text, sizeof error_text, "%s", text);
  return status;
}

// Our own refusals; everything else that flies is libtorch's.
struct Refusal {
  int32_t status;
  std::string text;
};

template <typename... Parts>
[[noreturn]] void refuse(int32_t status, const Parts &...parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Refusal{status, text.str()};
}

// The interpreter rethrows an allocation failure as its own exception type, so only the words
// of the message tell it from the model's other failures.
bool says_out_of_memory(const char *text) noexcept {
  for (const char *words : {"can't allocate memory", "out of memory", "not enough memory",
                            "bad_alloc", "Cannot allocate memory"}) {
    if (std::strstr(text, words) != nullptr) return true;
  }
  return false;
}

int32_t classify(int32_t status, const char *text) noexcept {
  return fail(says_out_of_memory(text) ? GTORCH_OUT_OF_MEMORY : status, text);
}

// Runs a body; whatever it throws becomes a status. `otherwise` is the class of libtorch's errors.
template <typename Body>
int32_t fence(int32_t otherwise, Body &&body) noexcept {
  try {
    body();
    return GTORCH_OK;
  } catch (const Refusal &refusal) {
    return fail(refusal.status, refusal.text.c_str());
  } catch (const std::bad_alloc &) {
    return fail(GTORCH_OUT_OF_MEMORY, "out of memory");
  } catch (const c10::Error &error) {
    try {
      return classify(otherwise, error.what_without_backtrace());
    } catch (...) {
      return fail(GTORCH_OUT_OF_MEMORY, "out of memory while describing an error");
    }
  } catch (const std::exception &error) {
    return classify(otherwise, error.what());
  } catch (...) {
    return fail(GTORCH_INTERNAL, "an exception of unknown type");
  }
}

void require(bool holds, const char *rule) {
  if (!holds) refuse(GTORCH_BAD_ARGUMENT, rule);
}

void write_text(const std::string &from, char *text, size_t size) {
  if (size != 0) std::snprintf(text, size, "%s", from.c_str());
}

// ---- tensors ----------------------------------------------------------------------------------

struct Dtype {
  int32_t ours;
  at::ScalarType theirs;
  const char *name;
};

constexpr Dtype kDtypes[] = {
    {GTORCH_F32, at::kFloat, "f32"},      {GTORCH_F16, at::kHalf, "f16"},
    {GTORCH_BF16, at::kBFloat16, "bf16"}, {GTORCH_I64, at::kLong, "i64"},
    {GTORCH_I32, at::kInt, "i32"},        {GTORCH_U8, at::kByte, "u8"},
    {GTORCH_BOOL, at::kBool, "bool"},
};

at::ScalarType scalar_type(int32_t dtype) {
  for (const Dtype &known : kDtypes) {
    if (known.ours == dtype) return known.theirs;
  }
  refuse(GTORCH_BAD_ARGUMENT, "dtype ", dtype, " is not one of gtorch_dtype");
}

int32_t dtype_of(at::ScalarType type) {
  for (const Dtype &known : kDtypes) {
    if (known.theirs == type) return known.ours;
  }
  return 0;
}

const char *name_of(at::ScalarType type) {
  for (const Dtype &known : kDtypes) {
    if (known.theirs == type) return known.name;
  }
  return at::toString(type);
}

at::IntArrayRef sizes_of(const gtorch_tensor &tensor) {
  return {tensor.dims, static_cast<size_t>(tensor.rank)};
}

// The caller may be in another language: check the description before a pointer is trusted to it.
void check_tensor(const gtorch_tensor &tensor, const char *what, size_t index) {
  if (tensor.rank < 0 || tensor.rank > GTORCH_RANK_MAX)
    refuse(GTORCH_BAD_ARGUMENT, what, " ", index, ": rank ", tensor.rank, " is not within 0..8");
  uint64_t bytes = at::elementSize(scalar_type(tensor.dtype));
  bool overflow = false;
  for (int32_t i = 0; i < tensor.rank; ++i) {
    overflow |= tensor.dims[i] < 0;
    overflow |= __builtin_mul_overflow(bytes, static_cast<uint64_t>(tensor.dims[i]), &bytes);
  }
  if (overflow || bytes != tensor.bytes)
    refuse(GTORCH_BAD_ARGUMENT, what, " ", index, ": ", tensor.bytes,
           " bytes do not hold the shape ", sizes_of(tensor));
  if (tensor.data == nullptr && bytes != 0)
    refuse(GTORCH_BAD_ARGUMENT, what, " ", index, ": data is null");
}

// Tensors over the caller's memory. When the run is over and libtorch's references are dropped,
// a storage that is still referenced belongs to a model that kept its input (as an attribute):
// it gets a copy of its own, so that nothing points to the caller's memory any more.
class Lent {
 public:
  Tensor lend(const gtorch_tensor &tensor) {
    Tensor view = at::from_blob(tensor.data, sizes_of(tensor), scalar_type(tensor.dtype));
    storages_.push_back(view.storage());
    return view;
  }

  // Returns the bytes that had to be copied. Everything else that refers to the tensors must be
  // gone by now.
  uint64_t take_back() {
    uint64_t copied = 0;
    while (!storages_.empty()) {
      c10::Storage storage = std::move(storages_.back());
      storages_.pop_back();
      if (storage.use_count() > 1) copied += detach(storage);
    }
    return copied;
  }

  ~Lent() {
    // Only a failed run leaves something here; its error is already on its way.
    try {
      take_back();
    } catch (...) {
      for (c10::Storage &storage : storages_) disown(storage);
    }
  }

 private:
  static uint64_t detach(c10::Storage &storage) {
    const uint64_t bytes = storage.nbytes();
    const void *from = storage.data();
    try {
      at::DataPtr own = c10::GetCPUAllocator()->allocate(bytes);
      if (bytes != 0) std::memcpy(own.get(), from, bytes);
      storage.set_data_ptr_noswap(std::move(own));
    } catch (...) {
      disown(storage);
      throw;
    }
    return bytes;
  }

  // Worse than a copy, better than a pointer into memory that is somebody else's by now.
  static void disown(c10::Storage &storage) noexcept {
    storage.set_data_ptr_noswap(at::DataPtr());
    storage.set_nbytes(0);
  }

  c10::SmallVector<c10::Storage, 8> storages_;
};

// ---- signature --------------------------------------------------------------------------------

const c10::FunctionSchema &forward_schema(const torch::jit::Module &module) {
  return module.get_method("forward").function().getSchema();
}

bool is_tensor(const c10::TypePtr &type) {
  return type->isSubtypeOf(*c10::TensorType::get());
}

bool is_maybe_tensor(const c10::TypePtr &type) {
  return is_tensor(type) || type->isSubtypeOf(*c10::OptionalType::ofTensor());
}

bool is_tensor_list(const c10::TypePtr &type) {
  return type->isSubtypeOf(*c10::ListType::ofTensors());
}

int32_t kind_of(const c10::TypePtr &type) {
  if (is_maybe_tensor(type)) return GTORCH_KIND_TENSOR;
  switch (type->kind()) {
    case c10::TypeKind::IntType: return GTORCH_KIND_INT;
    case c10::TypeKind::FloatType: return GTORCH_KIND_FLOAT;
    case c10::TypeKind::BoolType: return GTORCH_KIND_BOOL;
    default: return GTORCH_KIND_OTHER;
  }
}

int32_t outputs_of(const c10::FunctionSchema &schema) {
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
bool mutates_itself(const torch::jit::Module &module) {
  const auto *function = torch::jit::tryToGraphFunction(module.get_method("forward").function());
  if (function == nullptr) return true;
  auto graph = function->graph()->copy();
  torch::jit::Inline(*graph);
  const torch::jit::AliasDb aliases(graph);
  std::vector<torch::jit::Block *> blocks{graph->block()};
  while (!blocks.empty()) {
    torch::jit::Block *block = blocks.back();
    blocks.pop_back();
    for (torch::jit::Node *node : block->nodes()) {
      if (node->kind() == c10::prim::SetAttr || node->kind() == c10::prim::CallMethod) return true;
      const bool reads = node->kind() == c10::prim::GetAttr;
      if (reads && aliases.hasWriters(node->output())) return true;
      for (torch::jit::Block *inner : node->blocks()) blocks.push_back(inner);
    }
  }
  return false;
}

gtorch_signature signature_of(const torch::jit::Module &module) {
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

// libtorch keeps this switch by thread. Off, its executor runs the graph as it is; but freezing
// under "off" leaves calls to methods that it then removes, so each use sets what it needs.
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

// ---- loading ----------------------------------------------------------------------------------

// The archive where the caller has it: no copy of the whole, each record is read out of place.
class Bytes : public caffe2::serialize::ReadAdapterInterface {
 public:
  Bytes(const void *data, size_t size) : data_(static_cast<const char *>(data)), size_(size) {}

  size_t size() const override { return size_; }

  size_t read(uint64_t pos, void *buf, size_t n, const char *) const override {
    if (pos >= size_) return 0;
    const size_t count = std::min<size_t>(n, size_ - pos);
    std::memcpy(buf, data_ + pos, count);
    return count;
  }

 private:
  const char *data_;
  size_t size_;
};

gtorch_module *adopt(torch::jit::Module module) {
  module.eval();
  const gtorch_signature signature = signature_of(module);
  return new gtorch_module{std::move(module), signature};
}

// ---- running ----------------------------------------------------------------------------------

template <typename T>
T scalar_from(const gtorch_tensor &tensor, int32_t dtype, const std::string &name) {
  if (tensor.dtype != dtype || tensor.bytes != sizeof(T))
    refuse(GTORCH_BAD_ARGUMENT, "input `", name, "` is a single value in forward: give one ",
           name_of(scalar_type(dtype)), " of shape []");
  T value;
  std::memcpy(&value, tensor.data, sizeof value);
  return value;
}

IValue argument(const gtorch_tensor &tensor, const c10::Argument &formal, Lent &lent,
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

std::vector<IValue> arguments_of(const gtorch_module &m, const gtorch_tensor *inputs, size_t count,
                                 Lent &lent, gtorch_report &report) {
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

void flatten(const IValue &value, Tensors &into) {
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

void check_output(const Tensor &got, const gtorch_tensor &want, size_t index) {
  if (!got.defined() || got.layout() != at::kStrided || !got.device().is_cpu())
    refuse(GTORCH_BAD_OUTPUT, "output ", index, ": the model gave no dense tensor in main memory");
  const at::ScalarType type = scalar_type(want.dtype);
  if (got.scalar_type() != type || got.sizes() != sizes_of(want))
    refuse(GTORCH_BAD_OUTPUT, "output ", index, ": the model gave ", name_of(got.scalar_type()),
           " ", got.sizes(), ", the caller has room for ", name_of(type), " ", sizes_of(want));
}

void check_count(size_t got, size_t want) {
  if (got != want)
    refuse(GTORCH_BAD_OUTPUT, "the model gave ", got, " outputs, the caller has room for ", want);
}

void store(const Tensor &got, const gtorch_tensor &want, gtorch_report &report) {
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

IValue call(const gtorch_module &m, std::vector<IValue> stack, bool profile) {
  // Profiling recompiles on the first calls of every shape, which a deadline cannot afford.
  const ExecutorOptimise guard(profile);
  return m.module.get_method("forward")(std::move(stack));
}

void run(const gtorch_module &m, const gtorch_tensor *inputs, size_t input_count,
         const gtorch_tensor *outputs, size_t output_count, bool profile, gtorch_report &report) {
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

void describe(const Tensor &tensor, size_t index, gtorch_tensor &into) {
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

void probe(const gtorch_module &m, const gtorch_tensor *inputs, size_t input_count,
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

}  // namespace

extern "C" {

const char *gtorch_error_text(void) { return error_text; }

int32_t gtorch_config(char *text, size_t size) {
  return fence(GTORCH_INTERNAL, [&] {
    require(text != nullptr, "text is null");
    write_text(at::show_config(), text, size);
  });
}

int32_t gtorch_set_threads(int32_t count) {
  return fence(GTORCH_INTERNAL, [&] {
    require(count > 0, "the number of threads must be 1 or more");
    at::set_num_threads(count);
  });
}

int32_t gtorch_set_interop_threads(int32_t count) {
  return fence(GTORCH_BAD_ARGUMENT, [&] {
    require(count > 0, "the number of threads must be 1 or more");
    at::set_num_interop_threads(count);
  });
}

int32_t gtorch_threads(int32_t *intra, int32_t *interop) {
  return fence(GTORCH_INTERNAL, [&] {
    require(intra != nullptr && interop != nullptr, "an out-parameter is null");
    *intra = at::get_num_threads();
    *interop = static_cast<int32_t>(at::get_num_interop_threads());
  });
}

int32_t gtorch_module_load_path(const char *path, gtorch_module **module) {
  return fence(GTORCH_BAD_ARCHIVE, [&] {
    require(path != nullptr && module != nullptr, "path or module is null");
    std::FILE *file = std::fopen(path, "rb");
    const bool readable = file != nullptr && (std::fgetc(file) != EOF || std::ferror(file) == 0);
    const int reason = errno;
    if (file != nullptr) std::fclose(file);
    if (!readable) refuse(GTORCH_BAD_PATH, path, ": ", std::strerror(reason));
    *module = adopt(torch::jit::load(std::string(path), at::Device(at::kCPU)));
  });
}

int32_t gtorch_module_load_buffer(const void *data, size_t size, gtorch_module **module) {
  return fence(GTORCH_BAD_ARCHIVE, [&] {
    require((data != nullptr || size == 0) && module != nullptr, "data or module is null");
    *module = adopt(torch::jit::load(std::make_shared<Bytes>(data, size), at::Device(at::kCPU)));
  });
}

int32_t gtorch_module_define(const char *source, const char *const *names,
                             const gtorch_tensor *values, size_t count, gtorch_module **module) {
  return fence(GTORCH_BAD_ARGUMENT, [&] {
    require(source != nullptr && module != nullptr, "source or module is null");
    torch::jit::Module made("Module");
    made.register_attribute("training", c10::BoolType::get(), false);
    for (size_t i = 0; i < count; ++i) {
      check_tensor(values[i], "buffer", i);
      const gtorch_tensor &value = values[i];
      Tensor view = at::from_blob(value.data, sizes_of(value), scalar_type(value.dtype));
      made.register_buffer(names[i], view.clone());
    }
    made.define(source);
    *module = adopt(std::move(made));
  });
}

int32_t gtorch_module_save(const gtorch_module *module, const char *path) {
  return fence(GTORCH_INTERNAL, [&] {
    require(module != nullptr && path != nullptr, "module or path is null");
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    if (!file) refuse(GTORCH_BAD_PATH, path, ": ", std::strerror(errno));
    module->module.save(file);
    file.close();
    if (!file) refuse(GTORCH_BAD_PATH, path, ": ", std::strerror(errno));
  });
}

int32_t gtorch_module_freeze(gtorch_module *module) {
  return fence(GTORCH_INTERNAL, [&] {
    require(module != nullptr, "module is null");
    const ExecutorOptimise on(true);
    module->module = torch::jit::freeze(module->module);
  });
}

int32_t gtorch_module_optimise(gtorch_module *module) {
  return fence(GTORCH_INTERNAL, [&] {
    require(module != nullptr, "module is null");
    const ExecutorOptimise on(true);
    // A module that is frozen already would be rewritten in place: give it a graph to spoil.
    torch::jit::Module copy = module->module.clone(/*inplace=*/true);
    module->module = torch::jit::optimize_for_inference(copy);
  });
}

int32_t gtorch_module_signature(const gtorch_module *module, gtorch_signature *out) {
  return fence(GTORCH_INTERNAL, [&] {
    require(module != nullptr && out != nullptr, "module or out is null");
    *out = module->signature;
  });
}

int32_t gtorch_module_input(const gtorch_module *module, size_t index, int32_t *kind, char *name,
                            size_t size) {
  return fence(GTORCH_INTERNAL, [&] {
    require(module != nullptr && kind != nullptr && name != nullptr, "an argument is null");
    const auto count = static_cast<size_t>(module->signature.input_count);
    require(index < count, "forward has no such input");
    const c10::Argument &formal = forward_schema(module->module).arguments()[index + 1];
    *kind = kind_of(formal.type());
    write_text(formal.name(), name, size);
  });
}

int32_t gtorch_module_run(const gtorch_module *module, const gtorch_tensor *inputs,
                          size_t input_count, const gtorch_tensor *outputs, size_t output_count,
                          uint32_t flags, gtorch_report *report) {
  return fence(GTORCH_MODEL_RAISED, [&] {
    require(module != nullptr && report != nullptr, "module or report is null");
    require(inputs != nullptr || input_count == 0, "inputs is null");
    require(outputs != nullptr || output_count == 0, "outputs is null");
    *report = gtorch_report{};
    const c10::InferenceMode on;
    run(*module, inputs, input_count, outputs, output_count, flags & GTORCH_RUN_PROFILE, *report);
  });
}

int32_t gtorch_module_probe(const gtorch_module *module, const gtorch_tensor *inputs,
                            size_t input_count, gtorch_tensor *outputs, size_t capacity,
                            size_t *count) {
  return fence(GTORCH_MODEL_RAISED, [&] {
    require(module != nullptr && count != nullptr, "module or count is null");
    require(inputs != nullptr || input_count == 0, "inputs is null");
    require(outputs != nullptr || capacity == 0, "outputs is null");
    const c10::InferenceMode on;
    probe(*module, inputs, input_count, outputs, capacity, *count);
  });
}

void gtorch_module_free(gtorch_module *module) {
  fence(GTORCH_INTERNAL, [&] { delete module; });
}
}
