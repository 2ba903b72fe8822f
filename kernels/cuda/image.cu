// gather_image: pictures of bytes, rows of pixels of channels, into a batch of normalised numbers:
// byte * scale + bias, fused, then rounded to the wanted format; planes of channels, or channels
// last.
//
// A tile is up to TILE_PIXELS pixels of one picture. Its bytes are read once, in wide words, into
// shared memory: over PCIe each read counts. Grid: any. Blocks of THREADS.

#include "float.cuh"

constexpr u32 TILE_PIXELS = 1024;
constexpr u32 CHANNELS_MAX = 4;

// Twin: Float in src/cast.rs.
enum Float : u32 { F32, F16, BF16 };

struct Pictures {
  Parts parts;  // an element is a picture
  u64 batch;
  u32 pixels;  // of one picture
  u32 channels;
  u32 tiles;  // of one picture
  u32 to;
  u32 channels_last;
  float scale[CHANNELS_MAX];
  float bias[CHANNELS_MAX];
  u32 zero;
};
static_assert(sizeof(Pictures) == 1360, "twin");

template <class To, class Function>
__device__ inline void normalise(const Pictures& it, const u8* bytes, u64 picture, u32 first,
                                 u32 count) {
  To* batch = reinterpret_cast<To*>(it.batch) + picture * it.pixels * it.channels;
  auto number = [&](u32 at, u32 channel) {
    float byte = static_cast<float>(bytes[at]);
    return Function()(__fmaf_rn(byte, it.scale[channel], it.bias[channel]));
  };
  if (it.channels_last) {
    To* place = batch + static_cast<u64>(first) * it.channels;
    for (u32 at = threadIdx.x; at < count * it.channels; at += THREADS) {
      place[at] = number(at, at % it.channels);
    }
    return;
  }
  for (u32 channel = 0; channel < it.channels; channel++) {
    To* place = batch + static_cast<u64>(channel) * it.pixels + first;
    for (u32 pixel = threadIdx.x; pixel < count; pixel += THREADS) {
      place[pixel] = number(pixel * it.channels + channel, channel);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
gather_image(const __grid_constant__ Pictures it) {
  // Room to lie as far from alignment as the source, so that both are copied in wide words.
  alignas(16) __shared__ u8 held[TILE_PIXELS * CHANNELS_MAX + 16];
  const Parts& parts = it.parts;
  u32 tiles = parts.first_tile[parts.count];
  for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    u32 part = part_of(parts, tile);
    u32 within = tile - parts.first_tile[part];
    u64 picture = within / it.tiles;  // of this part
    u32 first = within % it.tiles * TILE_PIXELS;
    u32 count = least(it.pixels - first, TILE_PIXELS);
    u64 from = parts.address[part] + (picture * it.pixels + first) * it.channels;
    const u8* bytes = held + from % 16;

    __syncthreads();  // nobody reads the tile before any more
    copy(reinterpret_cast<u64>(bytes), from, count * it.channels);
    __syncthreads();  // the whole tile is there

    picture += parts.begin[part];
    switch (it.to) {
      case F32: normalise<float, Same>(it, bytes, picture, first, count); break;
      case F16: normalise<u16, F32ToF16>(it, bytes, picture, first, count); break;
      case BF16: normalise<u16, F32ToBf16>(it, bytes, picture, first, count); break;
    }
  }
}
