// The C++ half of shim.h: its functions, each a thin body in a fence. What they share is in shim/,
// included here and nowhere else: libtorch's headers take ten seconds a translation unit.
//
// All of it must compile unchanged with libtorch 1.13 and with 2.x, so it keeps to what both have,
// and takes one header an operator.
#include "shim.h"

#include "shim/fence.h"
#include "shim/run.h"
#include "shim/signature.h"
#include "shim/tensor.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/core/InferenceMode.h>
#include <caffe2/serialize/read_adapter_interface.h>
#include <torch/csrc/api/include/torch/version.h>
#include <torch/csrc/jit/serialization/import.h>

#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#ifndef GTORCH_LIBTORCH
#error "GTORCH_LIBTORCH must be the absolute path of the libtorch_cpu library compiled against"
#endif

#define GTORCH_TEXT(x) #x
#define GTORCH_NUMBER(x) GTORCH_TEXT(x)

const char gtorch_marker[] =
    "gpulet-torch-shim\nabi=" GTORCH_NUMBER(GTORCH_ABI) "\nversion=" TORCH_VERSION
    "\nlibtorch=" GTORCH_LIBTORCH "\n";

// The Rust twins in src/sys.rs assert the same.
static_assert(sizeof(gtorch_tensor) == 88 && alignof(gtorch_tensor) == 8);
static_assert(sizeof(gtorch_signature) == 32 && sizeof(gtorch_report) == 40);

namespace {

using namespace gtorch;

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
  const ExecutorOptimise on(true);
  module.eval();
  const gtorch_signature signature = signature_of(module);
  return new gtorch_module{std::move(module), signature};
}

// Asked before libtorch is, which says less, and which would wait for ever on a pipe.
void check_readable(const char *path) {
  struct stat status;
  if (stat(path, &status) != 0) refuse(GTORCH_BAD_PATH, path, ": ", std::strerror(errno));
  if (!S_ISREG(status.st_mode)) refuse(GTORCH_BAD_PATH, path, ": not a regular file");
  std::FILE *file = std::fopen(path, "rb");
  if (file == nullptr) refuse(GTORCH_BAD_PATH, path, ": ", std::strerror(errno));
  std::fclose(file);
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
    check_readable(path);
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
                             const gtorch_tensor *values, size_t count,
                             const char *const *child_names, const gtorch_module *const *children,
                             size_t child_count, gtorch_module **module) {
  return fence(GTORCH_BAD_ARGUMENT, [&] {
    require(source != nullptr && module != nullptr, "source or module is null");
    require((names != nullptr && values != nullptr) || count == 0, "names or values is null");
    require((child_names != nullptr && children != nullptr) || child_count == 0,
            "child_names or children is null");
    torch::jit::Module made("Module");
    made.register_attribute("training", c10::BoolType::get(), false);
    for (size_t i = 0; i < count; ++i) {
      check_tensor(values[i], "buffer", i);
      const gtorch_tensor &value = values[i];
      Tensor view = at::from_blob(value.data, sizes_of(value), scalar_type(value.dtype));
      made.register_buffer(names[i], view.clone());
    }
    for (size_t i = 0; i < child_count; ++i) {
      made.register_module(child_names[i], children[i]->module);
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
