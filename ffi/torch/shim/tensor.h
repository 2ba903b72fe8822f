// Tensors over the caller's memory, and how that memory is given back.
#ifndef GPULET_TORCH_SHIM_TENSOR_H
#define GPULET_TORCH_SHIM_TENSOR_H

#include "fence.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/SmallVector.h>

namespace gtorch {

using at::Tensor;

struct Dtype {
  int32_t ours;
  at::ScalarType theirs;
  const char *name;
};

inline constexpr Dtype kDtypes[] = {
    {GTORCH_F32, at::kFloat, "f32"},      {GTORCH_F16, at::kHalf, "f16"},
    {GTORCH_BF16, at::kBFloat16, "bf16"}, {GTORCH_I64, at::kLong, "i64"},
    {GTORCH_I32, at::kInt, "i32"},        {GTORCH_U8, at::kByte, "u8"},
    {GTORCH_BOOL, at::kBool, "bool"},
};

inline at::ScalarType scalar_type(int32_t dtype) {
  for (const Dtype &known : kDtypes) {
    if (known.ours == dtype) return known.theirs;
  }
  refuse(GTORCH_BAD_ARGUMENT, "dtype ", dtype, " is not one of gtorch_dtype");
}

inline int32_t dtype_of(at::ScalarType type) {
  for (const Dtype &known : kDtypes) {
    if (known.theirs == type) return known.ours;
  }
  return 0;
}

inline const char *name_of(at::ScalarType type) {
  for (const Dtype &known : kDtypes) {
    if (known.theirs == type) return known.name;
  }
  return at::toString(type);
}

inline at::IntArrayRef sizes_of(const gtorch_tensor &tensor) {
  return {tensor.dims, static_cast<size_t>(tensor.rank)};
}

// The caller may be in another language: check the description before a pointer is trusted to it.
inline void check_tensor(const gtorch_tensor &tensor, const char *what, size_t index) {
  if (tensor.rank < 0 || tensor.rank > GTORCH_RANK_MAX)
    refuse(GTORCH_BAD_ARGUMENT, what, " ", index, ": rank ", tensor.rank, " is not within 0..8");
  uint64_t bytes = at::elementSize(scalar_type(tensor.dtype));
  bool overflow = false;
  for (int32_t i = 0; i < tensor.rank; ++i) {
    overflow |= tensor.dims[i] < 0;
    overflow |= __builtin_mul_overflow(bytes, static_cast<uint64_t>(tensor.dims[i]), &bytes);
  }
  if (overflow || bytes != tensor.bytes)
    refuse(GTORCH_BAD_ARGUMENT, what, " ", index, ": ", tensor.bytes,
           " bytes do not hold the shape ", sizes_of(tensor));
  if (tensor.data == nullptr && bytes != 0)
    refuse(GTORCH_BAD_ARGUMENT, what, " ", index, ": data is null");
}

// Tensors over the caller's memory. When the run is over and libtorch's references are dropped,
// a storage that is still referenced belongs to a model that kept its input (as an attribute):
// it gets a copy of its own, so that nothing points to the caller's memory any more.
class Lent {
 public:
  Tensor lend(const gtorch_tensor &tensor) {
    Tensor view = at::from_blob(tensor.data, sizes_of(tensor), scalar_type(tensor.dtype));
    storages_.push_back(view.storage());
    return view;
  }

  // Returns the bytes that had to be copied. Everything else that refers to the tensors must be
  // gone by now.
  uint64_t take_back() {
    uint64_t copied = 0;
    while (!storages_.empty()) {
      c10::Storage storage = std::move(storages_.back());
      storages_.pop_back();
      if (storage.use_count() > 1) copied += detach(storage);
    }
    return copied;
  }

  ~Lent() {
    // Only a failed run leaves something here; its error is already on its way.
    try {
      take_back();
    } catch (...) {
      for (c10::Storage &storage : storages_) disown(storage);
    }
  }

 private:
  static uint64_t detach(c10::Storage &storage) {
    const uint64_t bytes = storage.nbytes();
    const void *from = storage.data();
    try {
      at::DataPtr own = c10::GetCPUAllocator()->allocate(bytes);
      if (bytes != 0) std::memcpy(own.get(), from, bytes);
      storage.set_data_ptr_noswap(std::move(own));
    } catch (...) {
      disown(storage);
      throw;
    }
    return bytes;
  }

  // Worse than a copy, better than a pointer into memory that is somebody else's by now.
  static void disown(c10::Storage &storage) noexcept {
    storage.set_data_ptr_noswap(at::DataPtr());
    storage.set_nbytes(0);
  }

  c10::SmallVector<c10::Storage, 8> storages_;
};

}  // namespace gtorch

#endif
