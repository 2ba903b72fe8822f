// For drills. fault: writes where no memory is, which ends the context, and under MPS those of all
// neighbours. hang: runs until a word is set, for the watchdog to find. Grid: one block of one
// thread.

#include "gpulet.cuh"

struct Drill {
  u64 address;
};
static_assert(sizeof(Drill) == 8, "twin");

extern "C" __global__ void fault(const __grid_constant__ Drill it) {
  *reinterpret_cast<volatile u32*>(it.address) = 1;
}

extern "C" __global__ void hang(const __grid_constant__ Drill it) {
  const volatile u32* word = reinterpret_cast<const volatile u32*>(it.address);
  while (*word == 0) __nanosleep(10000);
}
