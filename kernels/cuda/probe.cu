// probe: notes on which multiprocessors its blocks run. A block stays for a while, so that the next
// one must go elsewhere. Grid: at least as many blocks as the device can hold. Blocks of
// PROBE_THREADS.

#include "gpulet.cuh"

// The most a block can have, so that a multiprocessor is full with one or two.
constexpr u32 PROBE_THREADS = 1024;

struct Probe {
  u64 bitmap;  // of words u32, zeroed before
  u32 words;
  u32 stay_ns;
};
static_assert(sizeof(Probe) == 16, "twin");

extern "C" __global__ void __launch_bounds__(PROBE_THREADS)
probe(const __grid_constant__ Probe it) {
  if (threadIdx.x == 0) {
    u32 number = multiprocessor(), word = number / 32;
    if (word < it.words) atomicOr(reinterpret_cast<u32*>(it.bitmap) + word, 1u << number % 32);
    u64 since = now_ns();
    while (now_ns() - since < it.stay_ns) {
    }
  }
  __syncthreads();
}
