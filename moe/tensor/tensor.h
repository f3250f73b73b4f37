#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "moe/base/arena.h"
#include "moe/base/check.h"
#include "moe/tensor/mat_view.h"

namespace moe {

// Owns float32 values of any shape, row-major, 64-byte aligned. Moves, never copies by accident.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(std::vector<int64_t> shape) : Tensor(ShapeOnly(std::move(shape))) { Allocate(); }  // zeros
  // A shape without values: empty() until Allocate.
  static Tensor ShapeOnly(std::vector<int64_t> shape) {
    Tensor out;
    out.size_ = 1;
    for (const int64_t extent : shape) {
      MOE_CHECK(extent >= 0, "extent {}", extent);
      out.size_ *= extent;
    }
    out.shape_ = std::move(shape);
    return out;
  }
  void Allocate() {  // zeros
    bytes_ = AllocateAligned(static_cast<size_t>(size_) * sizeof(float));
    std::memset(bytes_.get(), 0, static_cast<size_t>(size_) * sizeof(float));
  }
  void Free() { bytes_.reset(); }  // shape and size stay

  Tensor(Tensor&& other) noexcept { *this = std::move(other); }
  Tensor& operator=(Tensor&& other) noexcept {  // leaves the other empty
    shape_ = std::exchange(other.shape_, {}), size_ = std::exchange(other.size_, 0), bytes_ = std::move(other.bytes_);
    return *this;
  }

  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t size() const { return size_; }
  bool empty() const { return bytes_ == nullptr; }
  float* data() const { return reinterpret_cast<float*>(bytes_.get()); }
  std::span<float> span() const { return {data(), empty() ? size_t{0} : static_cast<size_t>(size_)}; }

  // [shape[0]*...*shape[n-2], shape[n-1]]; a vector is one row.
  MatView<float> mat() const {
    const int64_t cols = shape_.empty() ? 1 : shape_.back();
    return {data(), cols == 0 ? 0 : size_ / cols, cols};
  }
  // Slice i of the first dimension, as mat() would see it: expert i of [E, F, D].
  MatView<float> slice(int64_t i) const {
    MOE_CHECK(!shape_.empty() && i >= 0 && i < shape_[0], "slice {} of {}", i, shape_.empty() ? 0 : shape_[0]);
    const int64_t per_slice = size_ / shape_[0], cols = shape_.back();
    return {data() + i * per_slice, cols == 0 ? 0 : per_slice / cols, cols};
  }

 private:
  std::vector<int64_t> shape_;
  int64_t size_ = 0;
  AlignedBytes bytes_;
};

}  // namespace moe
