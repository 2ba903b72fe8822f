// pressure_l2, pressure_dram: neighbours that read a working set over and over until they are told
// to stop. How hard they press is set by the number of blocks and by a pause after each chunk. A
// working set well inside the L2 cache presses on that alone; one several times its size is served
// by DRAM.
//
// Grid: as wanted. Blocks of THREADS. Ends within a few milliseconds of the stop.

#include "gpulet.cuh"

struct Pressure {
  u64 address;  // aligned to 16
  u64 stop;     // a u32 in mapped host memory; not 0: stop
  u64 done;     // a u64 a block: bytes read so far, written about every millisecond
  u32 chunks;   // of CHUNK bytes; at least 1
  u32 pause_ns;
  u32 zero;  // 0, which the compiler cannot know
  u32 reserved;
};
static_assert(sizeof(Pressure) == 40, "twin");

constexpr u32 CHUNK = 64 * 1024;
constexpr u64 LOOK_NS = 1000000;

// The first passes the L1 cache by; the second tells caches to let go of what it read before all
// else.
struct FromL2 {
  static __device__ uint4 load(const uint4* word) { return __ldcg(word); }
};
struct FromDram {
  static __device__ uint4 load(const uint4* word) { return __ldcs(word); }
};

template <class Level>
__device__ inline void press(const Pressure& it) {
  const volatile u32* stop = reinterpret_cast<const volatile u32*>(it.stop);
  volatile u64* done = reinterpret_cast<volatile u64*>(it.done) + blockIdx.x;
  u64 bytes = 0, looked = now_ns();
  u32 seen = 0;
  for (u32 chunk = blockIdx.x % it.chunks;; chunk = (chunk + gridDim.x) % it.chunks) {
    u64 start = it.address + static_cast<u64>(chunk) * CHUNK;
    const uint4* words = reinterpret_cast<const uint4*>(start);
#pragma unroll 8
    for (u32 i = 0; i < CHUNK / sizeof(uint4) / THREADS; i++) {
      uint4 word = Level::load(words + i * THREADS + threadIdx.x);
      seen ^= word.x ^ word.y ^ word.z ^ word.w;
    }
    bytes += CHUNK;
    if (it.pause_ns != 0) __nanosleep(it.pause_ns);
    // What was seen decides nothing, but a load that nobody needs would be left out.
    bool ended = (seen & it.zero) != 0;
    // Seldom, and by one thread: the stop word is read over PCIe, which others press on.
    if (threadIdx.x == 0 && now_ns() - looked >= LOOK_NS) {
      *done = bytes;
      ended |= *stop != 0;
      looked = now_ns();
    }
    if (__syncthreads_or(ended)) return;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
pressure_l2(const __grid_constant__ Pressure it) {
  press<FromL2>(it);
}

extern "C" __global__ void __launch_bounds__(THREADS)
pressure_dram(const __grid_constant__ Pressure it) {
  press<FromDram>(it);
}
