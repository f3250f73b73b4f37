#include <gtest/gtest.h>

#include <vector>

#include "tests/ops/block_sparse_cases.h"

namespace moe::test {
namespace {

TEST(BlockSparse, TransposedSparseTimesDense) {
  ForEachCase([](const Blocks& blocks, const Case& c, DType format, Rng& rng, ExecContext& ctx) {
    constexpr int64_t K = 35;
    const int64_t M = blocks.topology.num_rows(), columns = blocks.columns * c.block * 2;
    const Values s(blocks, 2, rng);
    FencedMatrix x(9, K);
    FillNormal(x.view(), rng);
    const auto rows = RandomInts(M, 9, rng);
    std::vector<FencedMatrix> d_w;
    std::vector<MatView<float>> views;
    std::vector<float> before;
    for (int64_t e = 0; e < c.experts; ++e) {
      d_w.emplace_back(4 * c.block, K);
      FillNormal(d_w.back().view(), rng);
      const auto values = d_w.back().dense();
      before.insert(before.end(), values.begin(), values.end());
    }
    for (auto& m : d_w) views.push_back(m.view());
    AddTransposedSparseTimesDense(s.matrix, x.view(), rows, format, views, ctx);
    const auto dense = Dense(blocks, s.matrix);
    const bool bf16 = format == DType::kBf16;
    auto want = Multiply(
        columns, K, M, [&](int64_t n, int64_t m) { return AsInput(dense[static_cast<size_t>(m * columns + n)], bf16); },
        [&](int64_t k, int64_t m) { return AsInput(x.view()(rows[static_cast<size_t>(m)], k), bf16); });
    std::vector<float> got;
    for (const auto& m : d_w) {
      const auto values = m.dense();
      got.insert(got.end(), values.begin(), values.end());
      EXPECT_TRUE(m.Intact());
    }
    const auto bounds = Bounds(want, M, before);
    for (size_t i = 0; i < want.value.size(); ++i) want.value[i] += before[i];
    ExpectClose(got, want.value, bounds);
  });
}

TEST(BlockSparse, TransposedDenseTimesSparse) {
  ForEachCase([](const Blocks& blocks, const Case& c, DType format, Rng& rng, ExecContext& ctx) {
    constexpr int64_t N = 21;
    const int64_t M = blocks.topology.num_rows(), columns = blocks.columns * c.block;
    const Values s(blocks, 1, rng);
    FencedMatrix d_y(M, N);
    FillNormal(d_y.view(), rng);
    std::vector<FencedMatrix> d_w;
    std::vector<MatView<float>> views;
    for (int64_t e = 0; e < c.experts; ++e) {
      d_w.emplace_back(N, 2 * c.block);
      FillNormal(d_w.back().view(), rng);
    }
    const auto gather_columns = [&] {
      std::vector<float> out;
      for (int64_t n = 0; n < N; ++n) {
        for (auto& m : d_w) {
          const auto row = m.view().row_span(n);
          out.insert(out.end(), row.begin(), row.end());
        }
      }
      return out;
    };
    const auto before = gather_columns();
    for (auto& m : d_w) views.push_back(m.view());
    AddTransposedDenseTimesSparse(d_y.view(), s.matrix, format, views, ctx);
    const auto dense = Dense(blocks, s.matrix);
    const bool bf16 = format == DType::kBf16;
    auto want = Multiply(
        N, columns, M, [&](int64_t n, int64_t m) { return AsInput(d_y.view()(m, n), bf16); },
        [&](int64_t k, int64_t m) { return AsInput(dense[static_cast<size_t>(m * columns + k)], bf16); });
    const auto bounds = Bounds(want, M, before);
    for (size_t i = 0; i < want.value.size(); ++i) want.value[i] += before[i];
    for (const auto& m : d_w) EXPECT_TRUE(m.Intact());
    ExpectClose(gather_columns(), want.value, bounds);
  });
}

}  // namespace
}  // namespace moe::test
