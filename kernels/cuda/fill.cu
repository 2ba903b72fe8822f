// fill: a stretch of memory becomes a pattern of four bytes, over and over. Grid: any. Blocks of
// THREADS.

#include "gpulet.cuh"

struct Fill {
  u64 address;  // aligned to what the pattern repeats: one, two or four bytes
  u64 bytes;
  u32 pattern;
  u32 reserved;
};
static_assert(sizeof(Fill) == 24, "twin");

constexpr u64 FILL_TILE = THREADS * IN_FLIGHT * 16;

extern "C" __global__ void __launch_bounds__(THREADS)
fill(const __grid_constant__ Fill it) {
  for (u64 at = blockIdx.x * FILL_TILE; at < it.bytes; at += gridDim.x * FILL_TILE) {
    u64 to = it.address + at;
    u32 bytes = least(it.bytes - at, FILL_TILE);
    u32 head = least((0 - to) % 4, bytes);
    u32 words = (bytes - head) / 4;
    u32 tail = head + words * 4;
    u32 ragged = threadIdx.x < head ? threadIdx.x : tail + threadIdx.x - head;
    // What is off a word repeats sooner than that, so every word begins with the pattern's start.
    if (ragged < bytes) *reinterpret_cast<u8*>(to + ragged) = it.pattern >> 8 * (ragged % 4);
    u32* word = reinterpret_cast<u32*>(to + head);
    for (u32 i = threadIdx.x; i < words; i += THREADS) word[i] = it.pattern;
  }
}
