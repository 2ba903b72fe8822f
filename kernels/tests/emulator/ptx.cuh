// In the place of cuda/ptx.cuh.
#pragma once

constexpr unsigned MULTIPROCESSORS = 4;

inline unsigned short to_f16(float value) {
  _Float16 half = static_cast<_Float16>(value);
  unsigned short bits;
  memcpy(&bits, &half, sizeof bits);
  return bits;
}

inline float from_f16(unsigned short bits) {
  _Float16 half;
  memcpy(&half, &bits, sizeof half);
  return static_cast<float>(half);
}

inline unsigned long long now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000ull + now.tv_nsec;
}

inline unsigned multiprocessor() { return blockIdx.x % MULTIPROCESSORS; }
