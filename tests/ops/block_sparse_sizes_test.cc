// Blocks of 64: the products of an MoE layer's topology against plain loops over its used rows.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/ops/block_sparse_cases.h"

namespace moe::test {
namespace {

// Three experts of two columns of blocks: one with 64 + 64 + 9 rows, one with none, one with 33.
struct Diagonal {
  static constexpr int64_t kBlock = 64, kColumns = 2 * kBlock, kExperts = 3, kRows = 4 * kBlock;
  const std::vector<int32_t> row_begin = {0, 2, 4, 6, 8}, column = {0, 1, 0, 1, 0, 1, 4, 5}, used = {64, 64, 9, 33};
  BlockTopology topology;

  explicit Diagonal(ExecContext& ctx) : topology(MakeTopology(kBlock, 2 * kExperts, row_begin, column, used, ctx)) {}
  static int64_t Begin(int64_t expert) { return expert == 0 ? 0 : 3 * kBlock; }  // its first row of S
  static int64_t Rows(int64_t expert) { return expert == 0 ? 2 * kBlock + 9 : expert == 1 ? 0 : 33; }
};

// Values of S: a strip of one expert's columns below the other.
struct Strips {
  std::vector<float> values = std::vector<float>(static_cast<size_t>(Diagonal::kRows * Diagonal::kColumns), NAN);
  BlockMatrix matrix;

  explicit Strips(const Diagonal& d) : matrix{.topology = &d.topology} {
    matrix.values = MatView<float>(values.data(), 1, std::ssize(values));
  }
  MatView<float> of(int64_t expert) {
    return {values.data() + Diagonal::Begin(expert) * Diagonal::kColumns, Diagonal::Rows(expert), Diagonal::kColumns};
  }
};

template <class F>
void ForEachTableAndFormat(F&& fn) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      SCOPED_TRACE(fmt::format("{} {}", table->name, Name(format)));
      TestContext t(2, table);
      Rng rng(1);
      fn(Diagonal(t.ctx), format, rng, t.ctx);
    }
  }
}

TEST(BlockSparseOf64, ForwardProductsMatchTheTwin) {
  ForEachTableAndFormat([](const Diagonal& d, DType format, Rng& rng, ExecContext& ctx) {
    constexpr int64_t K = 37, N = 45;
    const bool bf16 = format == DType::kBf16;
    const Segments up(Diagonal::kExperts, Diagonal::kColumns, K, format, rng, ctx),
        down(Diagonal::kExperts, N, Diagonal::kColumns, format, rng, ctx);
    FencedMatrix x(Diagonal::kRows, K), y(Diagonal::kRows, N);
    FillNormal(x.view(), rng);
    Strips s(d);
    SparseFromDense(x.view(), {}, up.packed, Epilogue::kStore, s.matrix, {}, ctx);
    DenseFromSparse(s.matrix, down.packed, y.view(), ctx);
    EXPECT_TRUE(y.Intact());
    for (int64_t e = 0; e < Diagonal::kExperts; ++e) {
      SCOPED_TRACE(fmt::format("expert {}", e));
      const int64_t begin = Diagonal::Begin(e), rows = Diagonal::Rows(e);
      const auto hidden = Multiply(
          rows, Diagonal::kColumns, K, [&](int64_t m, int64_t k) { return AsInput(x.view()(begin + m, k), bf16); },
          [&](int64_t n, int64_t k) { return AsInput(up.of(e)(n, k), bf16); });
      ExpectClose(s.of(e), hidden.value, Bounds(hidden, K));
      const auto out = Multiply(
          rows, N, Diagonal::kColumns, [&](int64_t m, int64_t k) { return AsInput(s.of(e)(m, k), bf16); },
          [&](int64_t n, int64_t k) { return AsInput(down.of(e)(n, k), bf16); });
      ExpectClose(y.view().Rows(begin, rows), out.value, Bounds(out, Diagonal::kColumns));
    }
    // Rows of a block that are not used stay as they were.
    for (const int64_t row : {2 * Diagonal::kBlock + 9, 3 * Diagonal::kBlock - 1, 3 * Diagonal::kBlock + 33})
      EXPECT_TRUE(std::isnan(y.view()(row, 0)) && std::isnan(s.values[static_cast<size_t>(row * Diagonal::kColumns)])) << row;
  });
}

TEST(BlockSparseOf64, WeightGradientsMatchTheTwin) {
  ForEachTableAndFormat([](const Diagonal& d, DType format, Rng& rng, ExecContext& ctx) {
    constexpr int64_t K = 35, N = 21;
    const bool bf16 = format == DType::kBf16;
    Strips s(d);
    for (int64_t e = 0; e < Diagonal::kExperts; ++e) FillNormal(s.of(e), rng);
    FencedMatrix x(7, K), d_y(Diagonal::kRows, N);
    FillNormal(x.view(), rng), FillNormal(d_y.view(), rng);
    const auto rows = RandomInts(Diagonal::kRows, 7, rng);
    std::vector<FencedMatrix> d_up, d_down;
    std::vector<MatView<float>> d_up_views, d_down_views;
    for (int64_t e = 0; e < Diagonal::kExperts; ++e) {
      d_up.emplace_back(Diagonal::kColumns, K), d_down.emplace_back(N, Diagonal::kColumns);
      d_up.back().Fill(std::vector<float>(static_cast<size_t>(Diagonal::kColumns * K)));
      d_down.back().Fill(std::vector<float>(static_cast<size_t>(Diagonal::kColumns * N)));
    }
    for (auto& m : d_up) d_up_views.push_back(m.view());
    for (auto& m : d_down) d_down_views.push_back(m.view());
    AddTransposedSparseTimesDense(s.matrix, x.view(), rows, format, d_up_views, ctx);
    AddTransposedDenseTimesSparse(d_y.view(), s.matrix, format, d_down_views, ctx);
    for (int64_t e = 0; e < Diagonal::kExperts; ++e) {
      SCOPED_TRACE(fmt::format("expert {}", e));
      const int64_t begin = Diagonal::Begin(e), M = Diagonal::Rows(e);
      const auto up = Multiply(
          Diagonal::kColumns, K, M, [&](int64_t n, int64_t m) { return AsInput(s.of(e)(m, n), bf16); },
          [&](int64_t k, int64_t m) { return AsInput(x.view()(rows[static_cast<size_t>(begin + m)], k), bf16); });
      const auto down = Multiply(
          N, Diagonal::kColumns, M, [&](int64_t n, int64_t m) { return AsInput(d_y.view()(begin + m, n), bf16); },
          [&](int64_t k, int64_t m) { return AsInput(s.of(e)(m, k), bf16); });
      ExpectClose(d_up_views[static_cast<size_t>(e)], up.value, Bounds(up, M));
      ExpectClose(d_down_views[static_cast<size_t>(e)], down.value, Bounds(down, M));
      EXPECT_TRUE(d_up[static_cast<size_t>(e)].Intact() && d_down[static_cast<size_t>(e)].Intact());
    }
  });
}

}  // namespace
}  // namespace moe::test
