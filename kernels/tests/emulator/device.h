// What CUDA C++ has beside C++, for the kernels to be compiled for the host: the words, the vector
// types, and the few functions that they call. One block runs at a time, and one thread of it.
#pragma once

#include <time.h>

#include <cmath>
#include <cstring>

struct Index {
  unsigned x;
};
extern Index threadIdx, blockIdx, gridDim;

// Waits for all threads of the block; tells whether any of them said yes.
bool meet(bool yes);

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(threads)
#define __noinline__
// Blocks run one after another, so that one of each serves them all.
#define __shared__ static

inline void __syncthreads() { meet(false); }
inline bool __syncthreads_or(bool yes) { return meet(yes); }
inline uint4 __ldcg(const uint4* word) { return *word; }
inline uint4 __ldcs(const uint4* word) { return *word; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline void atomicOr(unsigned* word, unsigned bits) { *word |= bits; }
inline void __nanosleep(unsigned ns) {
  timespec pause = {0, static_cast<long>(ns)};
  nanosleep(&pause, nullptr);
}
