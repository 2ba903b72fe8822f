// What the kernels share. NVRTC compiles them where no CUDA toolkit is, so nothing is included:
// neither CUDA's headers nor C's.
//
// Every kernel takes one structure by value. Its twin in Rust is in src/cuda/params.rs, and each
// side asserts the size. Addresses are device-accessible: device memory, or mapped host memory.
#pragma once

#include <ptx.cuh>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Blocks of every kernel that walks memory have this many threads.
constexpr u32 THREADS = 256;
// A thread loads this many words before it stores the first: a read over PCIe takes about a
// microsecond, so reads must overlap.
constexpr u32 IN_FLIGHT = 4;

constexpr u32 PARTS_MAX = 64;

// Parts lie one after another in a batch. Each is cut into tiles, and tiles are numbered through
// all parts, so that blocks share the work evenly, however unequal the parts are.
struct Parts {
  u64 address[PARTS_MAX];
  u64 begin[PARTS_MAX + 1];       // its place in the batch, in elements; then the batch's length
  u32 first_tile[PARTS_MAX + 1];  // the number of its first tile; then how many there are
  u32 count;
};
static_assert(sizeof(Parts) == 1296, "twin");

// The part that holds a tile: the last whose first tile is not after it.
__device__ inline u32 part_of(const Parts& parts, u32 tile) {
  u32 low = 0, high = parts.count - 1;
  while (low < high) {
    u32 middle = (low + high + 1) / 2;
    if (parts.first_tile[middle] <= tile) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

__device__ inline u64 least(u64 a, u64 b) { return a < b ? a : b; }

// The block turns count words from here into as many there. Both are aligned to their word; they
// may be the same memory, if words are of the same size.
template <class From, class To, class Function>
__device__ inline void each(u64 to, u64 from, u32 count, Function function) {
  const From* source = reinterpret_cast<const From*>(from);
  To* target = reinterpret_cast<To*>(to);
#pragma unroll 1
  for (u32 at = threadIdx.x; at < count; at += THREADS * IN_FLIGHT) {
    From held[IN_FLIGHT];
#pragma unroll
    for (u32 i = 0; i < IN_FLIGHT; i++) {
      if (at + i * THREADS < count) held[i] = source[at + i * THREADS];
    }
#pragma unroll
    for (u32 i = 0; i < IN_FLIGHT; i++) {
      if (at + i * THREADS < count) target[at + i * THREADS] = function(held[i]);
    }
  }
}

struct Same {
  template <class Word>
  __device__ Word operator()(Word word) const {
    return word;
  }
};

// Turns bytes, a Word at a time but at the ragged ends. The addresses are as far from alignment as
// each other, and function works on a Word as it does on each of its bytes.
template <class Word, class Function>
__device__ inline void each_word(u64 to, u64 from, u32 bytes, Function function) {
  u32 head = least((0 - to) % sizeof(Word), bytes);
  u32 words = (bytes - head) / sizeof(Word);
  u32 tail = head + words * sizeof(Word);
  u32 ragged = threadIdx.x < head ? threadIdx.x : tail + threadIdx.x - head;
  if (ragged < bytes) {
    *reinterpret_cast<u8*>(to + ragged) = function(*reinterpret_cast<const u8*>(from + ragged));
  }
  each<Word, Word>(to + head, from + head, words, function);
}

// The block copies bytes by the widest word that both addresses can be aligned to.
__device__ inline void copy(u64 to, u64 from, u32 bytes) {
  u32 apart = static_cast<u32>(to ^ from);
  if (apart % 16 == 0) {
    each_word<uint4>(to, from, bytes, Same());
  } else if (apart % 4 == 0) {
    each_word<u32>(to, from, bytes, Same());
  } else {
    each<u8, u8>(to, from, bytes, Same());
  }
}
