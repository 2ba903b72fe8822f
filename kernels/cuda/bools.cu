// bools: every byte that is not 0 becomes 1, as C++ demands of a bool. Grid: any. Blocks of
// THREADS.

#include "gpulet.cuh"

struct Bools {
  u64 address;
  u64 bytes;
};
static_assert(sizeof(Bools) == 16, "twin");

constexpr u64 BOOLS_TILE = THREADS * IN_FLIGHT * 16;

struct ToBool {
  __device__ u8 operator()(u8 byte) const { return byte != 0; }
  // Adding 0x7f carries into a byte's top bit if any lower bit is set; or-ing adds the top bit
  // itself.
  __device__ u32 operator()(u32 four) const {
    return (((four & 0x7f7f7f7f) + 0x7f7f7f7f) | four) >> 7 & 0x01010101;
  }
  __device__ uint4 operator()(uint4 word) const {
    const ToBool& self = *this;
    return make_uint4(self(word.x), self(word.y), self(word.z), self(word.w));
  }
};

extern "C" __global__ void __launch_bounds__(THREADS)
bools(const __grid_constant__ Bools it) {
  for (u64 at = blockIdx.x * BOOLS_TILE; at < it.bytes; at += gridDim.x * BOOLS_TILE) {
    u64 address = it.address + at;
    each_word<uint4>(address, address, least(it.bytes - at, BOOLS_TILE), ToBool());
  }
}
