#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "moe/base/arena.h"
#include "moe/base/thread_pool.h"
#include "moe/kernels/cpu/kernel_table.h"
#include "moe/ops/exec_context.h"
#include "moe/tensor/mat_view.h"

namespace moe::test {

// What ops need to run: TestContext t(2); Op(..., t.ctx).
struct TestContext {
  explicit TestContext(int num_threads = 1, const KernelTable* table = SupportedKernelTables()[0])
      : pool(num_threads), ctx{pool, arena, *table} {}
  TestContext(const TestContext&) = delete;
  TestContext& operator=(const TestContext&) = delete;

  ThreadPool pool;
  Arena arena;
  ExecContext ctx;
};

// A matrix between NaNs: rows lie `gap` elements apart, with a row's worth before and after. What reads past a row gets NaN;
// what writes there is seen by Intact().
class FencedMatrix {
 public:
  FencedMatrix(int64_t rows, int64_t cols, int64_t gap = 3)
      : rows_(rows), cols_(cols), stride_(cols + gap), values_(static_cast<size_t>((rows + 2) * stride_), kFence) {}

  // The inside keeps the fence's value (NaN) until written: poison for outputs.
  MatView<float> view() { return {values_.data() + stride_, rows_, cols_, stride_}; }
  MatView<const float> view() const { return {values_.data() + stride_, rows_, cols_, stride_}; }
  void Fill(std::span<const float> dense) {
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < cols_; ++c) view()(r, c) = dense[static_cast<size_t>(r * cols_ + c)];
  }
  std::vector<float> dense() const {
    std::vector<float> out;
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < cols_; ++c) out.push_back(view()(r, c));
    return out;
  }
  bool Intact() const {
    for (size_t i = 0; i < values_.size(); ++i) {
      const int64_t r = static_cast<int64_t>(i) / stride_ - 1, c = static_cast<int64_t>(i) % stride_;
      const bool inside = r >= 0 && r < rows_ && c < cols_;
      if (!inside && std::memcmp(&values_[i], &kFence, sizeof(float)) != 0) return false;
    }
    return true;
  }

 private:
  static constexpr float kFence = __builtin_nanf("0x123");
  int64_t rows_, cols_, stride_;
  std::vector<float> values_;
};

}  // namespace moe::test
