#include "moe/ops/block_sparse.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "testing/reference/rows.h"
#include "tests/ops/block_sparse_cases.h"

namespace moe::test {
namespace {

TEST(BlockSparse, SparseFromDense) {
  ForEachCase([](const Blocks& blocks, const Case& c, DType format, Rng& rng, ExecContext& ctx) {
    constexpr int64_t K = 37;
    const int64_t M = blocks.topology.num_rows();
    for (const bool gather : {false, true}) {
      Values s(blocks, 1, NAN);
      const int64_t columns = blocks.columns * c.block;
      const Segments w(c.experts, 2 * c.block, K, format, rng, ctx);
      FencedMatrix x(gather ? 5 : M, K);
      FillNormal(x.view(), rng);
      const std::vector<int32_t> rows = gather ? RandomInts(M, 5, rng) : std::vector<int32_t>{};
      SparseFromDense(x.view(), rows, w.packed, Epilogue::kStore, s.matrix, {}, ctx);
      const bool bf16 = format == DType::kBf16;
      auto want = Multiply(
          M, columns, K,
          [&](int64_t m, int64_t k) { return AsInput(x.view()(gather ? rows[static_cast<size_t>(m)] : m, k), bf16); },
          [&](int64_t n, int64_t k) { return AsInput(w.of(n / (2 * c.block))(n % (2 * c.block), k), bf16); });
      const auto bounds = Bounds(want, K);
      for (int64_t m = 0; m < M; ++m) {
        for (int64_t n = 0; n < columns; ++n) {
          if (!blocks.Has(m, n, 1)) want.value[static_cast<size_t>(m * columns + n)] = 0;
        }
      }
      ExpectClose(Dense(blocks, s.matrix), want.value, bounds);
    }
  });
}

TEST(BlockSparse, SparseFromDenseWithSwiglu) {
  ForEachCase([](const Blocks& blocks, const Case& c, DType format, Rng& rng, ExecContext& ctx) {
    constexpr int64_t K = 20;
    const int64_t M = blocks.topology.num_rows();
    Values hidden(blocks, 1, NAN), gate_up(blocks, 2, NAN), stored(blocks, 2, NAN);
    const Segments w(c.experts, 4 * c.block, K, format, rng, ctx);
    FencedMatrix x(M, K);
    FillNormal(x.view(), rng);
    SparseFromDense(x.view(), {}, w.packed, Epilogue::kSwiglu, hidden.matrix, gate_up.matrix, ctx);
    SparseFromDense(x.view(), {}, w.packed, Epilogue::kStore, stored.matrix, {}, ctx);
    ExpectSameBits(gate_up.storage, stored.storage);
    // The activation, by the twin, from the products themselves.
    const auto products = Dense(blocks, gate_up.matrix);
    const auto want = ReferenceSwiglu(std::vector<double>(products.begin(), products.end()));
    std::vector<double> bounds;
    for (const double h : want) bounds.push_back(16 * kEpsF32 * std::fabs(h) + 1e-37);
    ExpectClose(Dense(blocks, hidden.matrix), want, bounds);
  });
}

TEST(BlockSparse, DenseFromSparse) {
  ForEachCase([](const Blocks& blocks, const Case& c, DType format, Rng& rng, ExecContext& ctx) {
    constexpr int64_t N = 45;
    const int64_t M = blocks.topology.num_rows(), columns = blocks.columns * c.block;
    const Values s(blocks, 1, rng);
    const Segments w(c.experts, N, 2 * c.block, format, rng, ctx);
    FencedMatrix y(M, N);
    DenseFromSparse(s.matrix, w.packed, y.view(), ctx);
    const auto dense = Dense(blocks, s.matrix);
    const bool bf16 = format == DType::kBf16;
    const auto want = Multiply(
        M, N, columns, [&](int64_t m, int64_t k) { return AsInput(dense[static_cast<size_t>(m * columns + k)], bf16); },
        [&](int64_t n, int64_t k) { return AsInput(w.of(k / (2 * c.block))(n, k % (2 * c.block)), bf16); });
    const auto bounds = Bounds(want, columns);
    for (int64_t m = 0; m < M; ++m) {
      const auto row = static_cast<size_t>(m * N);
      const std::vector<double> want_row(want.value.begin() + m * N, want.value.begin() + (m + 1) * N);
      if (blocks.Used(m)) {
        ExpectClose(y.view().row_span(m), want_row, std::vector<double>(bounds.begin() + m * N, bounds.begin() + (m + 1) * N));
      } else {
        EXPECT_TRUE(std::isnan(y.dense()[row])) << "row " << m << " is not used and was written";
      }
    }
    EXPECT_TRUE(y.Intact());
  });
}

// As MoE layers have them: the blocks of a row are of one expert. Sums of several would have to be rounded on the way.
TEST(BlockSparse, DenseFromSparseIntoBf16IsRoundedOnceOrRefused) {
  const ThrowingChecks guard;
  Rng rng(5);
  for (const Kind kind : {Kind::kDiagonal, Kind::kFull}) {
    TestContext t(2);
    const Blocks blocks = MakeBlocks(kind, 32, 3, false, rng, t.ctx);
    const int64_t M = blocks.topology.num_rows(), N = 70;
    const Values s(blocks, 1, rng);
    const Segments w(3, N, 64, DType::kBf16, rng, t.ctx);
    FencedMatrix y(M, N);
    DenseFromSparse(s.matrix, w.packed, y.view(), t.ctx);
    std::vector<Bf16> got(static_cast<size_t>(M * N)), want;
    const auto run = [&] { DenseFromSparse(s.matrix, w.packed, MatView<Bf16>(got.data(), M, N), t.ctx); };
    if (kind == Kind::kFull) {
      EXPECT_THROW(run(), CheckError);
      continue;
    }
    ASSERT_GT(M, 0);
    run();
    for (const float x : y.dense()) want.push_back(ToBf16(x));
    ExpectSameBits(got, want);
  }
}

// Used rows without a block become 0, and nothing beside them.
TEST(BlockSparse, DenseFromSparseIntoBf16ClearsRowsWithoutBlocks) {
  Rng rng(6);
  TestContext t(2);
  const Blocks blocks(32, 3, 2, {true, true, false, false, true, true}, {}, t.ctx);
  constexpr int64_t N = 70, stride = 80;
  const Values s(blocks, 1, rng);
  const Segments w(1, N, 64, DType::kBf16, rng, t.ctx);
  std::vector<Bf16> got(96 * stride, Bf16{0x7fc1});
  DenseFromSparse(s.matrix, w.packed, MatView<Bf16>(got.data(), 96, N, stride), t.ctx);
  for (int64_t r = 0; r < 96; ++r) {
    for (int64_t n = 0; n < stride; ++n) {
      const Bf16 x = got[static_cast<size_t>(r * stride + n)];
      if (n >= N) {
        ASSERT_EQ(x.bits, 0x7fc1) << r << " " << n;
      } else if (r / 32 == 1) {
        ASSERT_EQ(x.bits, 0) << r << " " << n;
      } else {
        ASSERT_TRUE(std::isfinite(ToFloat(x))) << r << " " << n;
      }
    }
  }
}

TEST(BlockSparse, IsTheSameForAnyNumberOfThreads) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      std::vector<std::vector<float>> want;
      for (const int threads : {1, 2, 3, 4}) {
        TestContext t(threads, table);
        Rng rng(4);
        const Blocks blocks = MakeBlocks(Kind::kRandom, 32, 3, true, rng, t.ctx);
        const int64_t M = blocks.topology.num_rows();
        Values s(blocks, 1, 0);
        const Segments up(3, 64, 50, format, rng, t.ctx), down(3, 70, 64, format, rng, t.ctx);
        FencedMatrix x(M, 50), y(M, 70);
        FillNormal(x.view(), rng);
        std::vector<float> d_up(3 * 64 * 50), d_down(3 * 70 * 64);
        std::vector<MatView<float>> d_up_views, d_down_views;
        for (int64_t e = 0; e < 3; ++e) {
          d_up_views.emplace_back(d_up.data() + e * 64 * 50, 64, 50);
          d_down_views.emplace_back(d_down.data() + e * 70 * 64, 70, 64);
        }
        SparseFromDense(x.view(), {}, up.packed, Epilogue::kStore, s.matrix, {}, t.ctx);
        DenseFromSparse(s.matrix, down.packed, y.view(), t.ctx);
        AddTransposedSparseTimesDense(s.matrix, x.view(), {}, format, d_up_views, t.ctx);
        AddTransposedDenseTimesSparse(
            x.view(), s.matrix, format,
            std::vector<MatView<float>>{
                {d_down.data(), 50, 64}, {d_down.data() + 3200, 50, 64}, {d_down.data() + 6400, 50, 64}},
            t.ctx);
        const std::vector<std::vector<float>> got = {s.storage, y.dense(), d_up, d_down};
        if (want.empty()) want = got;
        for (size_t i = 0; i < got.size(); ++i) ExpectSameBits(got[i], want[i]);
      }
    }
  }
}

TEST(BlockSparse, MisuseIsCaught) {
  const ThrowingChecks guard;
  TestContext t;
  Rng rng(5);
  const std::vector<int32_t> begin = {0, 1, 2}, column = {0, 1}, falls = {0, 2, 1}, outside = {0, 2}, twice = {1, 1},
                             one_row = {0, 2};
  EXPECT_NO_THROW(MakeTopology(16, 2, begin, column, {}, t.ctx));
  EXPECT_THROW(MakeTopology(0, 2, begin, column, {}, t.ctx), CheckError);
  EXPECT_THROW(MakeTopology(24, 2, begin, column, {}, t.ctx), CheckError);
  EXPECT_THROW(MakeTopology(16, 2, falls, column, {}, t.ctx), CheckError);
  EXPECT_THROW(MakeTopology(16, 2, begin, outside, {}, t.ctx), CheckError);
  EXPECT_THROW(MakeTopology(16, 2, one_row, twice, {}, t.ctx), CheckError);
  EXPECT_THROW(MakeTopology(16, 2, begin, column, std::vector<int32_t>{16}, t.ctx), CheckError);
  EXPECT_THROW(MakeTopology(16, 2, begin, column, std::vector<int32_t>{16, 17}, t.ctx), CheckError);

  const Blocks blocks(16, 2, 2, {true, false, false, true}, {}, t.ctx);
  Values s(blocks, 1, 0);
  const Segments up(1, 32, 8, DType::kF32, rng, t.ctx), narrow(1, 16, 8, DType::kF32, rng, t.ctx),
      down(1, 8, 32, DType::kF32, rng, t.ctx);
  FencedMatrix x(32, 8), short_x(31, 8), y(32, 8), d_up(32, 8);
  FillNormal(x.view(), rng);
  const auto sdd = [&](MatView<const float> input, const Segments& w, const BlockMatrix& out) {
    SparseFromDense(input, {}, w.packed, Epilogue::kStore, out, {}, t.ctx);
  };
  EXPECT_NO_THROW(sdd(x.view(), up, s.matrix));
  EXPECT_THROW(sdd(short_x.view(), up, s.matrix), CheckError);
  EXPECT_THROW(sdd(x.view(), narrow, s.matrix), CheckError);
  EXPECT_THROW(sdd(x.view(), up, {}), CheckError);
  BlockMatrix few = s.matrix;
  few.values.cols -= 1;
  EXPECT_THROW(sdd(x.view(), up, few), CheckError);
  EXPECT_NO_THROW(DenseFromSparse(s.matrix, down.packed, y.view(), t.ctx));
  EXPECT_THROW(DenseFromSparse(s.matrix, up.packed, y.view(), t.ctx), CheckError);
  EXPECT_THROW(AddTransposedSparseTimesDense(s.matrix, x.view(), {}, DType::kF32, {}, t.ctx), CheckError);
  const std::vector<MatView<float>> d_w = {d_up.view()};
  EXPECT_NO_THROW(AddTransposedSparseTimesDense(s.matrix, x.view(), {}, DType::kF32, d_w, t.ctx));
  EXPECT_THROW(AddTransposedDenseTimesSparse(x.view(), s.matrix, DType::kF32, d_w, t.ctx), CheckError);
}

}  // namespace
}  // namespace moe::test
