#include "moe/ops/block_sparse.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/reference/gemm.h"
#include "testing/reference/rows.h"
#include "testing/test_context.h"

namespace moe::test {
namespace {

// Which blocks are there, as a mask, and the topology made from it.
struct Blocks {
  int64_t block, rows, columns;  // the latter two in blocks
  std::vector<bool> there;       // [rows, columns]
  std::vector<int32_t> row_begin, column, used;
  BlockTopology topology;

  Blocks(int64_t b, int64_t r, int64_t c, std::vector<bool> mask, std::vector<int32_t> rows_used, ExecContext& ctx)
      : block(b), rows(r), columns(c), there(std::move(mask)), row_begin{0}, used(std::move(rows_used)) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        if (there[static_cast<size_t>(i * columns + j)]) column.push_back(static_cast<int32_t>(j));
      }
      row_begin.push_back(static_cast<int32_t>(column.size()));
    }
    topology = MakeTopology(block, columns, row_begin, column, used, ctx);
  }
  bool Has(int64_t row, int64_t column_of_s, int64_t width) const {
    const int64_t i = row / block, j = column_of_s / (block * width);
    return there[static_cast<size_t>(i * columns + j)] && Used(row);
  }
  bool Used(int64_t row) const { return used.empty() || row % block < used[static_cast<size_t>(row / block)]; }
};

// Block-diagonal (an MoE layer's), random, or full.
enum class Kind { kDiagonal, kRandom, kFull };

Blocks MakeBlocks(Kind kind, int64_t block, int64_t experts, bool ragged, Rng& rng, ExecContext& ctx) {
  const int64_t columns = 2 * experts;  // two blocks an expert
  std::vector<bool> mask;
  std::vector<int32_t> used;
  int64_t rows = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t few = block > 64 ? e : rng.Below(4);  // none, too; of the large ones none, then one
    const int64_t count = kind == Kind::kDiagonal ? few : 2;
    for (int64_t i = 0; i < count; ++i, ++rows) {
      for (int64_t j = 0; j < columns; ++j) {
        mask.push_back(kind == Kind::kFull || (kind == Kind::kDiagonal ? j / 2 == e : rng.Below(5) < 3));
      }
      const bool last = i + 1 == count;
      used.push_back(static_cast<int32_t>(ragged && (last || kind == Kind::kRandom) ? rng.Below(block + 1) : block));
    }
  }
  return {block, rows, columns, mask, ragged ? used : std::vector<int32_t>{}, ctx};
}

// S as a dense matrix: 0 where no block is.
std::vector<float> Dense(const Blocks& blocks, const BlockMatrix& s) {
  const int64_t columns = blocks.columns * s.columns_per_block();
  std::vector<float> out(static_cast<size_t>(blocks.rows * blocks.block * columns));
  size_t next = 0;
  for (int64_t i = 0; i < blocks.rows; ++i) {
    for (int64_t r = i * blocks.block; r < (i + 1) * blocks.block; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        if (!blocks.there[static_cast<size_t>(i * blocks.columns + c / s.columns_per_block())]) continue;
        out[static_cast<size_t>(r * columns + c)] = blocks.Used(r) ? s.values.as<float>().data[next] : 0;
        ++next;
      }
    }
  }
  EXPECT_EQ(static_cast<int64_t>(next), s.values.size());
  return out;
}

struct Values {
  std::vector<float> storage;
  BlockMatrix matrix;
  Values(const Blocks& blocks, int64_t width, float fill) {
    matrix = {.topology = &blocks.topology, .width = width};
    storage.assign(static_cast<size_t>(matrix.size()), fill);
    matrix.values = MatView<float>(storage.data(), 1, matrix.size());
  }
  // Random where used, NaN where not.
  Values(const Blocks& blocks, int64_t width, Rng& rng) : Values(blocks, width, NAN) {
    size_t next = 0;
    for (int64_t i = 0; i < blocks.rows; ++i) {
      const int64_t strip = (blocks.row_begin[static_cast<size_t>(i) + 1] - blocks.row_begin[static_cast<size_t>(i)]) *
                            matrix.columns_per_block();
      for (int64_t r = i * blocks.block; r < (i + 1) * blocks.block; ++r) {
        for (int64_t c = 0; c < strip; ++c, ++next) {
          if (blocks.Used(r)) storage[next] = static_cast<float>(rng.Normal());
        }
      }
    }
  }
};

struct Segments {
  std::vector<FencedMatrix> dense;
  std::vector<AlignedBytes> bytes;
  std::vector<PackedWeight> packed;
  Segments(int64_t count, int64_t N, int64_t K, DType format, Rng& rng, ExecContext& ctx) {
    for (int64_t i = 0; i < count; ++i) {
      dense.emplace_back(N, K);
      FillNormal(dense.back().view(), rng);
      const auto size = static_cast<size_t>(PackedBytes(format, N, K, PackSide::kForward));
      bytes.push_back(AllocateAligned(size));
      packed.push_back(Pack(dense.back().view(), format, PackSide::kForward, {bytes.back().get(), size}, ctx));
    }
  }
};

std::vector<double> Bounds(const ReferenceProduct& product, int64_t terms, std::span<const float> before = {}) {
  std::vector<double> out;
  for (size_t i = 0; i < product.sum_abs.size(); ++i) {
    out.push_back(DotTolerance(terms + 2, product.sum_abs[i] + (before.empty() ? 0 : std::fabs(before[i]))).absolute);
  }
  return out;
}

struct Case {
  Kind kind;
  int64_t block, experts;
  bool ragged;
};
std::vector<Case> Cases() {
  std::vector<Case> out;
  for (const Kind kind : {Kind::kDiagonal, Kind::kRandom, Kind::kFull}) {
    for (const bool ragged : {false, true}) {
      for (const int64_t block : {16, 32, 48}) out.push_back({kind, block, kind == Kind::kFull || block == 48 ? 2 : 3, ragged});
    }
    out.push_back({kind, 128, kind == Kind::kDiagonal ? 2 : 1, true});
  }
  return out;
}

template <class F>
void ForEachCase(F&& fn) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const Case& c : Cases()) {
      for (const DType format : {DType::kF32, DType::kBf16}) {
        SCOPED_TRACE(fmt::format("{} kind {} block {} ragged {} {}", table->name, static_cast<int>(c.kind), c.block, c.ragged,
                                 Name(format)));
        TestContext t(2, table);
        Rng rng(static_cast<uint64_t>(c.block) + 1);
        const Blocks blocks = MakeBlocks(c.kind, c.block, c.experts, c.ragged, rng, t.ctx);
        fn(blocks, c, format, rng, t.ctx);
      }
    }
  }
}

TEST(BlockSparse, TheTopologyIndexesBlocksByRowAndColumn) {
  TestContext t;
  // x . x
  // . x x
  // x . x
  const Blocks b(16, 3, 3, {true, false, true, false, true, true, true, false, true}, {}, t.ctx);
  const BlockTopology& top = b.topology;
  EXPECT_EQ(std::vector<int32_t>(top.row.begin(), top.row.end()), (std::vector<int32_t>{0, 0, 1, 1, 2, 2}));
  EXPECT_EQ(std::vector<int32_t>(top.column_begin.begin(), top.column_begin.end()), (std::vector<int32_t>{0, 2, 3, 6}));
  EXPECT_EQ(std::vector<int32_t>(top.by_column.begin(), top.by_column.end()), (std::vector<int32_t>{0, 4, 2, 1, 3, 5}));
  EXPECT_EQ(top.num_rows(), 48);
}

TEST(BlockSparse, AnMoeLayersTopologyIsARectanglePerExpert) {
  TestContext t;
  const Blocks b(32, 5, 4, {true,  true,  false, false, true,  true,  false, false, true, true, false, false,  //
                            false, false, true,  true,  false, false, true,  true},
                 {32, 32, 7, 32, 32}, t.ctx);
  for (const auto rectangles : {b.topology.along_rows, b.topology.along_columns}) {
    ASSERT_EQ(rectangles.size(), 2u);
    EXPECT_EQ(rectangles[0].rows, 71);
    EXPECT_EQ(rectangles[0].columns, 2);
    EXPECT_EQ(rectangles[1].row_block, 3);
    EXPECT_EQ(rectangles[1].rows, 64);
    EXPECT_EQ(rectangles[1].column, 2);
    EXPECT_EQ(rectangles[1].round, 0);
  }
}

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
          [&](int64_t n, int64_t k) {
            return AsInput(w.dense[static_cast<size_t>(n / (2 * c.block))].view()(n % (2 * c.block), k), bf16);
          });
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
        [&](int64_t n, int64_t k) {
          return AsInput(w.dense[static_cast<size_t>(k / (2 * c.block))].view()(n, k % (2 * c.block)), bf16);
        });
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
