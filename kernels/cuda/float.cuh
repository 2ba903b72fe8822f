// Conversions between float formats, the same to the bit as on the CPU (src/cast.rs): to the
// nearest, ties to even, subnormals kept, and a NaN keeps its sign and the top of its payload and
// becomes quiet. The hardware's own conversions make every NaN the same one, so that NaNs are put
// together by hand.
#pragma once

#include "gpulet.cuh"

__device__ inline bool is_nan(u32 bits) { return (bits & 0x7fffffff) > 0x7f800000; }

struct F32ToF16 {
  __device__ u16 operator()(float value) const {
    u32 bits = __float_as_uint(value);
    if (is_nan(bits)) return (bits >> 16 & 0x8000) | 0x7e00 | (bits >> 13 & 0x3ff);
    return to_f16(value);
  }
};

struct F32ToBf16 {
  __device__ u16 operator()(float value) const {
    u32 bits = __float_as_uint(value);
    if (is_nan(bits)) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
};

struct F16ToF32 {
  __device__ float operator()(u16 half) const {
    u32 sign = (half & 0x8000u) << 16, payload = half & 0x3ffu;
    if ((half & 0x7fffu) > 0x7c00u) return __uint_as_float(sign | 0x7fc00000 | payload << 13);
    return from_f16(half);
  }
};

struct Bf16ToF32 {
  __device__ float operator()(u16 half) const {
    u32 bits = static_cast<u32>(half) << 16;
    return __uint_as_float(is_nan(bits) ? bits | 0x400000 : bits);
  }
};
