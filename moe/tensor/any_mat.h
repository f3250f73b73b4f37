#pragma once

#include "moe/base/bf16.h"
#include "moe/tensor/dtype.h"
#include "moe/tensor/mat_view.h"

namespace moe {

// A MatView whose elements are float32 or bf16, known only when the program runs: activations as products read and write them.
template <class Void>  // void, or const void
struct AnyMatView {
  Void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements

  AnyMatView() = default;
  AnyMatView(Void* d, DType type, int64_t r, int64_t c, int64_t s) : data(d), dtype(type), rows(r), cols(c), stride(s) {}
  template <class T>
  requires(std::is_convertible_v<T*, Void*>) AnyMatView(MatView<T> m)
      : AnyMatView(m.data, DTypeOf<std::remove_const_t<T>>(), m.rows, m.cols, m.stride) {}
  template <class Other>
  requires(std::is_convertible_v<Other*, Void*> && !std::is_same_v<Other, Void>) AnyMatView(const AnyMatView<Other>& m)
      : AnyMatView(m.data, m.dtype, m.rows, m.cols, m.stride) {}

  bool empty() const { return data == nullptr; }
  int64_t size() const { return rows * cols; }
  int64_t stride_bytes() const { return stride * SizeOf(dtype); }
  Void* row(int64_t r) const {
    MOE_DCHECK(r >= 0 && r < rows, "row {} of {}", r, rows);
    return at(r * stride);
  }
  AnyMatView Rows(int64_t begin, int64_t count) const {
    MOE_DCHECK(begin >= 0 && count >= 0 && begin + count <= rows, "rows {}+{} of {}", begin, count, rows);
    return {at(begin * stride), dtype, count, cols, stride};
  }
  // The view itself, where the elements are known to be T.
  template <class T>
  MatView<T> as() const {
    MOE_CHECK(dtype == DTypeOf<std::remove_const_t<T>>(), "a matrix of {}", Name(dtype));
    return {static_cast<T*>(data), rows, cols, stride};
  }

 private:
  template <class T>
  static constexpr DType DTypeOf() {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, Bf16>);
    return std::is_same_v<T, float> ? DType::kF32 : DType::kBf16;
  }
  Void* at(int64_t element) const {
    using Byte = std::conditional_t<std::is_const_v<Void>, const std::byte, std::byte>;
    return static_cast<Byte*>(data) + element * SizeOf(dtype);
  }
};
using AnyMat = AnyMatView<void>;
using ConstAnyMat = AnyMatView<const void>;

}  // namespace moe
