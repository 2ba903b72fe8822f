// A libcuda without a GPU, as much of it as the selfcheck calls: the kernels of cuda/, compiled for
// the host. Device memory is host memory; a launch runs on a thread of its own, its blocks one
// after another, the threads of a block in turns: each until it ends or meets the others.
//
// This proves what the kernels compute at which addresses, and that the selfcheck works. It proves
// nothing about races and time.

#include "device.h"

#include <stdint.h>
#include <stdlib.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <thread>
#include <vector>

Index threadIdx, blockIdx, gridDim;

#include "../../cuda/move.cu"
#include "../../cuda/image.cu"
#include "../../cuda/bools.cu"
#include "../../cuda/fill.cu"
#include "../../cuda/probe.cu"
#include "../../cuda/pressure.cu"
#include "../../cuda/busy.cu"
#include "../../cuda/drill.cu"

namespace {

constexpr int SUCCESS = 0, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700;

// One thread of a block.
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
  bool ended;
  static constexpr size_t STACK_BYTES = 64 * 1024;
};

std::vector<Fiber> fibers;
ucontext_t turns;
unsigned running;
bool said_yes, all_said;
const std::function<void()>* body;

void run_fiber() {
  (*body)();
  fibers[running].ended = true;
}

void run_block(unsigned threads) {
  if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
  for (unsigned thread = 0; thread < threads; thread++) {
    Fiber& fiber = fibers[thread];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = Fiber::STACK_BYTES;
    fiber.context.uc_link = &turns;
    fiber.ended = false;
    makecontext(&fiber.context, run_fiber, 0);
  }
  for (bool any = true; any; all_said = said_yes, said_yes = false) {
    any = false;
    for (running = 0; running < threads; running++) {
      if (fibers[running].ended) continue;
      any = true;
      threadIdx.x = running;
      swapcontext(&turns, &fibers[running].context);
    }
  }
}

// What is under way, as there is one stream.
std::thread launched;
bool is_running;
int failure = SUCCESS;

int wait() {
  if (launched.joinable()) launched.join();
  return failure;
}

template <class Params>
std::function<void()> with(void (*kernel)(Params), void* params) {
  Params copy = *static_cast<Params*>(params);
  return [=] { kernel(copy); };
}

struct Kernel {
  const char* name;
  std::function<std::function<void()>(void*)> bind;
};

const Kernel KERNELS[] = {
    {"gather", [](void* it) { return with(gather, it); }},
    {"scatter", [](void* it) { return with(scatter, it); }},
    {"gather_image", [](void* it) { return with(gather_image, it); }},
    {"bools", [](void* it) { return with(bools, it); }},
    {"fill", [](void* it) { return with(fill, it); }},
    {"probe", [](void* it) { return with(probe, it); }},
    {"pressure_l2", [](void* it) { return with(pressure_l2, it); }},
    {"pressure_dram", [](void* it) { return with(pressure_dram, it); }},
    {"busy", [](void* it) { return with(busy, it); }},
    {"fault", [](void*) { return [] { failure = ILLEGAL_ADDRESS; }; }},
    {"hang", [](void* it) { return with(hang, it); }},
};

}  // namespace

bool meet(bool yes) {
  said_yes |= yes;
  swapcontext(&fibers[running].context, &turns);
  return all_said;
}

extern "C" {

int cuInit(unsigned) { return SUCCESS; }
int cuDeviceGet(int* device, int) { return *device = 0; }
int cuDeviceGetName(char* name, int bytes, int) {
  strncpy(name, "no GPU but its emulation", bytes);
  return SUCCESS;
}
int cuDeviceGetAttribute(int* value, int which, int) {
  switch (which) {
    case 16: *value = MULTIPROCESSORS; break;
    case 38: *value = 1 << 20; break;  // bytes of the L2 cache
    case 75: *value = 9; break;        // compute capability, major
    default: *value = 0; break;        // and minor
  }
  return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = context;
  return SUCCESS;
}
int cuCtxSetCurrent(void*) { return SUCCESS; }
int cuStreamCreate(void** stream, unsigned) {
  *stream = stream;
  return SUCCESS;
}
int cuStreamSynchronize(void*) { return wait(); }
int cuStreamQuery(void*) {
  return __atomic_load_n(&is_running, __ATOMIC_ACQUIRE) ? NOT_READY : failure;
}

int cuGetErrorName(int code, const char** name) {
  *name = code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "an error of the emulation";
  return SUCCESS;
}

int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  *address = reinterpret_cast<uint64_t>(aligned_alloc(256, (bytes + 255) / 256 * 256));
  return SUCCESS;
}
int cuMemFree_v2(uint64_t address) {
  wait();
  free(reinterpret_cast<void*>(address));
  return SUCCESS;
}
int cuMemHostRegister_v2(void*, size_t, unsigned) { return SUCCESS; }
int cuMemHostUnregister(void*) { return wait(); }
int cuMemHostGetDevicePointer_v2(uint64_t* address, void* host, unsigned) {
  *address = reinterpret_cast<uint64_t>(host);
  return SUCCESS;
}
int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
  memcpy(reinterpret_cast<void*>(to), from, bytes);
  return SUCCESS;
}
int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
  memcpy(to, reinterpret_cast<const void*>(from), bytes);
  return SUCCESS;
}

int cuLibraryLoadData(void** library, const void* code, void*, void*, unsigned, void*, void*,
                      unsigned) {
  *library = library;
  return memcmp(code, "\x7f" "ELF", 4);
}
int cuLibraryUnload(void*) { return SUCCESS; }
int cuLibraryGetKernel(const void** kernel, void*, const char* name) {
  for (const Kernel& it : KERNELS) {
    if (strcmp(it.name, name) == 0) {
      *kernel = &it;
      return SUCCESS;
    }
  }
  return NOT_FOUND;
}
int cuKernelGetFunction(const void** function, const void* kernel) {
  *function = kernel;
  return SUCCESS;
}

int cuLaunchKernel(const void* kernel, unsigned blocks, unsigned, unsigned, unsigned threads,
                   unsigned, unsigned, unsigned, void*, void** params, void**) {
  if (wait() != SUCCESS) return failure;
  auto bound = static_cast<const Kernel*>(kernel)->bind(params[0]);
  is_running = true;
  launched = std::thread([=] {
    body = &bound;
    gridDim.x = blocks;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) run_block(threads);
    __atomic_store_n(&is_running, false, __ATOMIC_RELEASE);
  });
  return SUCCESS;
}

}  // extern "C"
