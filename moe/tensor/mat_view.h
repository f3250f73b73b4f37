#pragma once

#include <cstdint>
#include <span>
#include <type_traits>

#include "moe/base/check.h"

namespace moe {

// A matrix somebody else owns: [rows, cols], row-major, rows `stride` elements apart (>= cols). An empty view has data null.
template <class T>
struct MatView {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  MatView() = default;
  MatView(T* d, int64_t r, int64_t c) : MatView(d, r, c, c) {}
  MatView(T* d, int64_t r, int64_t c, int64_t s) : data(d), rows(r), cols(c), stride(s) {
    MOE_DCHECK(r >= 0 && c >= 0 && s >= c, "rows {} cols {} stride {}", r, c, s);
  }
  // A view of T is a view of const T.
  template <class U>
  requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>) MatView(const MatView<U>& other)
      : data(other.data), rows(other.rows), cols(other.cols), stride(other.stride) {}

  bool empty() const { return data == nullptr; }
  int64_t size() const { return rows * cols; }
  T* row(int64_t r) const {
    MOE_DCHECK(r >= 0 && r < rows, "row {} of {}", r, rows);
    return data + r * stride;
  }
  T& operator()(int64_t r, int64_t c) const {
    MOE_DCHECK(c >= 0 && c < cols, "column {} of {}", c, cols);
    return row(r)[c];
  }
  std::span<T> row_span(int64_t r) const { return {row(r), static_cast<size_t>(cols)}; }
  MatView Rows(int64_t begin, int64_t count) const {
    MOE_DCHECK(begin >= 0 && count >= 0 && begin + count <= rows, "rows {}+{} of {}", begin, count, rows);
    return {data + begin * stride, count, cols, stride};
  }
  MatView Cols(int64_t begin, int64_t count) const {
    MOE_DCHECK(begin >= 0 && count >= 0 && begin + count <= cols, "columns {}+{} of {}", begin, count, cols);
    return {data + begin, rows, count, stride};
  }
};

}  // namespace moe
