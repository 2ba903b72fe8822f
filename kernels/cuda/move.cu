// gather: parts, which may be slots in mapped host memory, into one batch. scatter: the other way.
// Either may convert each element on its way. Right for every alignment and length; 16 bytes a load
// where alignment allows.
//
// Grid: any. Blocks of THREADS.

#include "float.cuh"

// Twin: Cast in src/cast.rs.
enum Cast : u32 { NONE, F32_TO_F16, F32_TO_BF16, F16_TO_F32, BF16_TO_F32 };

struct Move {
  Parts parts;
  u64 batch;
  u32 tile;  // elements; a multiple of 16, so that every tile of a part is aligned as the part is
  u32 cast;
};
static_assert(sizeof(Move) == 1312, "twin");

// Four elements as one word.
template <class Element>
struct alignas(4 * sizeof(Element)) Four {
  Element element[4];
};

template <class From, class To, class Function>
struct OnFour {
  __device__ Four<To> operator()(Four<From> from) const {
    Four<To> to;
#pragma unroll
    for (u32 i = 0; i < 4; i++) to.element[i] = Function()(from.element[i]);
    return to;
  }
};

template <class From, class To, class Function>
__device__ inline void convert(u64 to, u64 from, u32 count) {
  if (from % (4 * sizeof(From)) == 0 && to % (4 * sizeof(To)) == 0) {
    u32 fours = count / 4, done = fours * 4;
    each<Four<From>, Four<To>>(to, from, fours, OnFour<From, To, Function>());
    each<From, To>(to + done * sizeof(To), from + done * sizeof(From), count - done, Function());
  } else if (from % sizeof(From) == 0 && to % sizeof(To) == 0) {
    each<From, To>(to, from, count, Function());
  } else {
    // Never so in a slot: right is enough here.
#pragma unroll 1
    for (u32 at = threadIdx.x; at < count; at += THREADS) {
      From before;
      memcpy(&before, reinterpret_cast<const u8*>(from) + at * sizeof before, sizeof before);
      To after = Function()(before);
      memcpy(reinterpret_cast<u8*>(to) + at * sizeof after, &after, sizeof after);
    }
  }
}

// Walks the tiles of all parts: function(to, from, elements) moves one.
template <bool INTO_BATCH, class From, class To, class Function>
__device__ inline void each_tile(const Move& it, Function function) {
  const Parts& parts = it.parts;
  u32 tiles = parts.first_tile[parts.count];
  for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    u32 part = part_of(parts, tile);
    u64 first = static_cast<u64>(tile - parts.first_tile[part]) * it.tile;
    u64 place = parts.begin[part] + first;
    u32 count = least(parts.begin[part + 1] - place, it.tile);
    u64 slot = parts.address[part];
    u64 from = INTO_BATCH ? slot + first * sizeof(From) : it.batch + place * sizeof(From);
    u64 to = INTO_BATCH ? it.batch + place * sizeof(To) : slot + first * sizeof(To);
    function(to, from, count);
  }
}

template <bool INTO_BATCH>
__device__ inline void move(const Move& it) {
  switch (it.cast) {
    case NONE: each_tile<INTO_BATCH, u8, u8>(it, copy); break;
    case F32_TO_F16: each_tile<INTO_BATCH, float, u16>(it, convert<float, u16, F32ToF16>); break;
    case F32_TO_BF16: each_tile<INTO_BATCH, float, u16>(it, convert<float, u16, F32ToBf16>); break;
    case F16_TO_F32: each_tile<INTO_BATCH, u16, float>(it, convert<u16, float, F16ToF32>); break;
    case BF16_TO_F32: each_tile<INTO_BATCH, u16, float>(it, convert<u16, float, Bf16ToF32>); break;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
gather(const __grid_constant__ Move it) {
  move<true>(it);
}

extern "C" __global__ void __launch_bounds__(THREADS)
scatter(const __grid_constant__ Move it) {
  move<false>(it);
}
