// The C++ half of shim_cuda.h. Compiled only where libtorch was built for CUDA (2.x).
#include "shim_cuda.h"

#include "shim/device_run.h"
#include "shim/fence.h"
#include "shim/place.h"
#include "shim/workspaces.h"

#include <ATen/cuda/CUDAGraph.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/api/include/torch/version.h>

#ifndef GTORCH_LIBTORCH
#error "GTORCH_LIBTORCH must be the absolute path of the libtorch_cuda library compiled against"
#endif

#define GTORCH_TEXT(x) #x
#define GTORCH_NUMBER(x) GTORCH_TEXT(x)

const char gtorch_cuda_marker[] =
    "gpulet-torch-cuda-shim\nabi=" GTORCH_NUMBER(GTORCH_CUDA_ABI) "\nversion=" TORCH_VERSION
    "\nlibtorch=" GTORCH_LIBTORCH "\n";

// The Rust twin in src/cuda/sys.rs asserts the same.
static_assert(sizeof(gtorch_precision) == 12);

struct gtorch_graph {
  // Kept as it was captured, for others to instantiate.
  at::cuda::CUDAGraph graph{true};
};

namespace {

using namespace gtorch;

// Ends a capture that an exception left open, so that the stream and the allocator are as before.
class Capture {
 public:
  Capture(at::cuda::CUDAGraph &graph, const uint64_t pool[2]) : graph_(graph) {
    // Other threads go on allocating and launching meanwhile.
    graph_.capture_begin({pool[0], pool[1]}, cudaStreamCaptureModeThreadLocal);
  }
  void end() {
    open_ = false;
    graph_.capture_end();
  }
  ~Capture() {
    if (!open_) return;
    try {
      graph_.capture_end();
    } catch (...) {
      // The reason is on its way already; what CUDA noted for later is this same one.
      cudaGetLastError();
    }
  }
  Capture(const Capture &) = delete;
  Capture &operator=(const Capture &) = delete;

 private:
  at::cuda::CUDAGraph &graph_;
  bool open_ = true;
};

uint64_t random_offset(int32_t device) {
  const auto index = static_cast<c10::DeviceIndex>(device);
  return at::cuda::detail::getDefaultCUDAGenerator(index).get_offset();
}

// A replay would repeat the numbers that were drawn at the capture.
void refuse_random(const DeviceRun &run) {
  const uint64_t before = random_offset(run.device);
  run.forward();
  if (random_offset(run.device) != before)
    refuse(GTORCH_MODEL_RAISED, "forward draws random numbers");
}

}  // namespace

extern "C" {

const char *gtorch_cuda_error_text(void) { return error_text; }

int32_t gtorch_cuda_open(int32_t device) {
  return fence(GTORCH_INTERNAL, [&] {
    const int count = c10::cuda::device_count_ensure_non_zero();
    if (device < 0 || device >= count)
      refuse(GTORCH_BAD_ARGUMENT, "device ", device, ": this process sees ", count);
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(device));
    at::globalContext().lazyInitDevice(at::kCUDA);
  });
}

int32_t gtorch_cuda_place(const gtorch_module *module, int32_t device,
                          const gtorch_precision *precision, gtorch_module **placed) {
  return fence(GTORCH_INTERNAL, [&] {
    require(module != nullptr && precision != nullptr && placed != nullptr, "an argument is null");
    const c10::InferenceMode off(false);
    const at::NoGradGuard no_gradients;
    std::unique_ptr<gtorch_module> moved(Place(device, *precision).move(*module));
    // Weights are still being laid out there, and who runs them does so on another stream.
    c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)).synchronize();
    *placed = moved.release();
  });
}

int32_t gtorch_cuda_run(const gtorch_module *placed, int32_t device, void *stream,
                        const gtorch_precision *precision, const gtorch_tensor *inputs,
                        size_t input_count, const gtorch_tensor *outputs, size_t output_count) {
  return fence(GTORCH_MODEL_RAISED, [&] {
    require(placed != nullptr && precision != nullptr, "placed or precision is null");
    const DeviceRun run{*placed, device, *precision, {inputs, input_count},
                        {outputs, output_count}};
    run.check();
    set_maths(*precision);
    const OnStream on(device, stream);
    run.forward();
  });
}

int32_t gtorch_cuda_pool(uint64_t pool[2]) {
  return fence(GTORCH_INTERNAL, [&] {
    require(pool != nullptr, "pool is null");
    const at::cuda::MempoolId_t id = at::cuda::graph_pool_handle();
    pool[0] = id.first;
    pool[1] = id.second;
  });
}

int32_t gtorch_cuda_capture(const gtorch_module *placed, int32_t device, void *stream,
                            const uint64_t pool[2], const gtorch_precision *precision,
                            const gtorch_tensor *inputs, size_t input_count,
                            const gtorch_tensor *outputs, size_t output_count,
                            gtorch_graph **graph) {
  return fence(GTORCH_MODEL_RAISED, [&] {
    require(placed != nullptr && precision != nullptr && graph != nullptr, "an argument is null");
    const DeviceRun run{*placed, device, *precision, {inputs, input_count},
                        {outputs, output_count}};
    run.check();
    set_maths(*precision);
    const OnStream on(device, stream);
    refuse_random(run);
    c10::cuda::getCurrentCUDAStream().synchronize();
    auto made = std::make_unique<gtorch_graph>();
    Capture capture(made->graph, pool);
    run.forward();
    capture.end();
    *graph = made.release();
  });
}

void *gtorch_cuda_graph_raw(gtorch_graph *graph) {
  void *raw = nullptr;
  fence(GTORCH_INTERNAL, [&] { raw = graph->graph.raw_cuda_graph(); });
  return raw;
}

void gtorch_cuda_graph_free(gtorch_graph *graph) {
  fence(GTORCH_INTERNAL, [&] { delete graph; });
}

int32_t gtorch_cuda_forget(void *stream) {
  return fence(GTORCH_INTERNAL, [&] { forget_workspaces(stream); });
}

int32_t gtorch_cuda_memory(int32_t device, uint64_t *reserved, uint64_t *allocated) {
  return fence(GTORCH_INTERNAL, [&] {
    require(reserved != nullptr && allocated != nullptr, "an out-parameter is null");
    const auto stats =
        c10::cuda::CUDACachingAllocator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
    constexpr auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *reserved = static_cast<uint64_t>(stats.reserved_bytes[all].current);
    *allocated = static_cast<uint64_t>(stats.allocated_bytes[all].current);
  });
}

int32_t gtorch_cuda_trim(void) {
  return fence(GTORCH_INTERNAL, [&] { c10::cuda::CUDACachingAllocator::emptyCache(); });
}
}
