// busy: arithmetic that touches no memory, so that what a launch takes follows from the number of
// multiprocessors alone. Grid: as wanted. Blocks of THREADS.

#include "gpulet.cuh"

struct Busy {
  u64 sink;  // a u32, which is never written
  u32 rounds;
  u32 zero;  // 0, which the compiler cannot know
};
static_assert(sizeof(Busy) == 16, "twin");

// So many sums do not wait for each other.
constexpr u32 CHAINS = 4;

extern "C" __global__ void __launch_bounds__(THREADS) busy(const __grid_constant__ Busy it) {
  float sums[CHAINS];
#pragma unroll
  for (u32 chain = 0; chain < CHAINS; chain++) sums[chain] = threadIdx.x + chain;
#pragma unroll 8
  for (u32 round = 0; round < it.rounds; round++) {
#pragma unroll
    for (u32 chain = 0; chain < CHAINS; chain++) sums[chain] = sums[chain] * 0.999f + 1.0f;
  }
  float sum = sums[0] + sums[1] + sums[2] + sums[3];
  // What comes out decides nothing, but sums that nobody needs would be left out.
  if ((static_cast<u32>(sum) & it.zero) != 0) *reinterpret_cast<volatile u32*>(it.sink) = 1;
}
