#include "moe/ops/gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <deque>
#include <numeric>
#include <vector>

#include "moe/ops/chunks.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/reference/gemm.h"
#include "testing/reference/rows.h"
#include "testing/shapes.h"
#include "testing/test_context.h"

namespace moe::test {
namespace {

// A product with all its data: a [source_rows,K] between NaNs, rows chosen from it or not, w [N,K] packed in either format.
struct Product {
  int64_t M, N, K;
  DType format;
  Epilogue epilogue;
  FencedMatrix a, w, c, pre;
  std::vector<int32_t> rows;
  AlignedBytes bytes;
  PackedWeight packed;
  std::vector<float> before;  // what c holds when it is added to

  struct Options {
    DType format = DType::kF32;
    Epilogue epilogue = Epilogue::kStore;
    bool gather = false;
    bool keep_pre = false;
    int64_t gap = 3;  // between rows
  };
  Product(GemmShape s, const Options& o, Rng& rng, ExecContext& ctx)
      : M(s.M),
        N(s.N),
        K(s.K),
        format(o.format),
        epilogue(o.epilogue),
        a(o.gather ? s.M / 2 + 3 : s.M, s.K, o.gap),
        w(s.N, s.K, o.gap),
        c(s.M, o.epilogue == Epilogue::kSwiglu ? s.N / 2 : s.N, o.gap),
        pre(o.keep_pre ? s.M : 0, o.keep_pre ? s.N : 0, o.gap) {
    FillNormal(a.view(), rng), FillNormal(w.view(), rng);
    if (o.gather) rows = RandomInts(M, a.view().rows, rng);
    const auto size = static_cast<size_t>(PackedBytes(format, N, K, PackSide::kForward));
    bytes = AllocateAligned(size);
    packed = Pack(w.view(), format, PackSide::kForward, {bytes.get(), size}, ctx);
    if (epilogue == Epilogue::kAccumulate) {
      FillNormal(c.view(), rng);
      before = c.dense();
    }
  }
  GemmProblem problem() {
    GemmProblem p{.a = a.view(), .a_rows = rows, .weight = &packed, .epilogue = epilogue, .c = c.view()};
    if (pre.view().rows > 0) p.pre_activation = pre.view();
    return p;
  }
  // A copy of c as it was, to run again into.
  void Refill() {
    c = FencedMatrix(c.view().rows, c.view().cols, c.view().stride - c.view().cols);
    if (!before.empty()) c.Fill(before);
  }
  void Expect() const {
    const bool bf16 = format == DType::kBf16;
    const auto row = [&](int64_t m) { return rows.empty() ? m : rows[static_cast<size_t>(m)]; };
    auto want = Multiply(
        M, N, K, [&](int64_t m, int64_t k) { return AsInput(a.view()(row(m), k), bf16); },
        [&](int64_t n, int64_t k) { return AsInput(w.view()(n, k), bf16); });
    std::vector<double> bounds;
    for (size_t i = 0; i < want.value.size(); ++i) {
      if (!before.empty()) want.value[i] += before[i], want.sum_abs[i] += std::fabs(before[i]);
      bounds.push_back(DotTolerance(K + 1, want.sum_abs[i]).absolute);
    }
    EXPECT_TRUE(a.Intact() && c.Intact() && pre.Intact());
    if (epilogue != Epilogue::kSwiglu) return ExpectClose(c.dense(), want.value, bounds);
    if (pre.view().rows > 0) ExpectClose(pre.dense(), want.value, bounds);
    // h = silu(gate) up: |silu'| < 1.1, |silu(x)| <= |x|
    std::vector<double> h, h_bounds;
    for (int64_t m = 0; m < M; ++m) {
      const auto begin = want.value.begin() + m * N;
      const std::vector<double> h_row = ReferenceSwiglu(std::vector<double>(begin, begin + N));
      for (int64_t i = 0; i < N / 2; ++i) {
        const auto gate = static_cast<size_t>(m * N + i / 16 * 32 + i % 16), up = gate + 16;
        h.push_back(h_row[static_cast<size_t>(i)]);
        h_bounds.push_back(1.1 * bounds[gate] * (std::fabs(want.value[up]) + bounds[up]) +
                           std::fabs(want.value[gate]) * bounds[up] + 8 * kEpsF32 * std::fabs(h.back()) + 1e-37);
      }
    }
    ExpectClose(c.dense(), h, h_bounds);
  }
};

constexpr DType kFormats[] = {DType::kF32, DType::kBf16};

TEST(GroupedGemm, MatchesTheTwinForEveryShapeFormatAndEpilogue) {
  for (const KernelTable* table : SupportedKernelTables()) {
    TestContext t(2, table);
    Rng rng(1);
    for (const GemmShape& shape : GemmShapes()) {
      for (const DType format : kFormats) {
        for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kAccumulate, Epilogue::kSwiglu}) {
          if (epilogue == Epilogue::kSwiglu && shape.N % 32 != 0) continue;
          for (const bool gather : {false, true}) {
            SCOPED_TRACE(fmt::format("{} [{},{},{}] {} epilogue {} gather {}", table->name, shape.M, shape.N, shape.K,
                                     Name(format), static_cast<int>(epilogue), gather));
            const bool keep_pre = epilogue == Epilogue::kSwiglu && !gather;
            Product p(shape, {.format = format, .epilogue = epilogue, .gather = gather, .keep_pre = keep_pre}, rng, t.ctx);
            Gemm(p.problem(), t.ctx);
            p.Expect();
          }
        }
      }
    }
  }
}

// `table`, but counts the tiles that read interleaved rows. One at a time, as kernels know of no context.
class CountsOuterTiles {
 public:
  explicit CountsOuterTiles(const KernelTable& table) : table_(table) {
    count = 0, f32 = table.outer_f32, bf16 = table.outer_bf16;
    table_.outer_f32 = [](auto... args) { ++count, f32(args...); };
    table_.outer_bf16 = [](auto... args) { ++count, bf16(args...); };
  }
  const KernelTable* table() const { return &table_; }
  int64_t tiles() const { return count; }

 private:
  static inline std::atomic<int64_t> count;
  static inline decltype(KernelTable::outer_f32) f32;
  static inline decltype(KernelTable::outer_bf16) bf16;
  KernelTable table_;
};

// One thread: nobody halves the items, and all of them have rows enough and panels enough to be interleaved.
TEST(GroupedGemm, InterleavedItemsMatchTheTwin) {
  for (const KernelTable* supported : SupportedKernelTables()) {
    const CountsOuterTiles counts(*supported);
    TestContext t(1, counts.table());
    Rng rng(12);
    for (const GemmShape& shape : {GemmShape{40, 160, 64}, {300, 320, 31}}) {
      for (const DType format : kFormats) {
        for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kAccumulate, Epilogue::kSwiglu}) {
          const bool gather = epilogue == Epilogue::kAccumulate;
          SCOPED_TRACE(fmt::format("{} [{},{},{}] {} epilogue {}", supported->name, shape.M, shape.N, shape.K, Name(format),
                                   static_cast<int>(epilogue)));
          const int64_t before = counts.tiles();
          const bool keep_pre = epilogue == Epilogue::kSwiglu;
          Product p(shape, {.format = format, .epilogue = epilogue, .gather = gather, .keep_pre = keep_pre}, rng, t.ctx);
          Gemm(p.problem(), t.ctx);
          EXPECT_EQ(counts.tiles() - before, CeilDiv(shape.M, supported->max_rows) * p.packed.num_panels());
          p.Expect();
        }
      }
    }
  }
}

// A prompt of 256 rows is interleaved, a row by itself is not: the same bits.
TEST(GroupedGemm, InterleavedItemsGiveTheBitsOfEveryRowAlone) {
  for (const KernelTable* supported : SupportedKernelTables()) {
    const CountsOuterTiles counts(*supported);
    TestContext t(1, counts.table());
    Rng rng(13);
    for (const DType format : kFormats) {
      for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kAccumulate, Epilogue::kSwiglu}) {
        for (const int64_t N : {160, 150}) {
          if (epilogue == Epilogue::kSwiglu && N % kPanel != 0) continue;
          for (const bool gather : {false, true}) {
            SCOPED_TRACE(fmt::format("{} {} epilogue {} N {} gather {}", supported->name, Name(format),
                                     static_cast<int>(epilogue), N, gather));
            const bool keep_pre = epilogue == Epilogue::kSwiglu;
            Product p({256, N, 77}, {.format = format, .epilogue = epilogue, .gather = gather, .keep_pre = keep_pre}, rng,
                      t.ctx);
            const int64_t before = counts.tiles();
            Gemm(p.problem(), t.ctx);
            const int64_t after = counts.tiles();
            EXPECT_EQ(after - before, CeilDiv(p.M, supported->max_rows) * p.packed.num_panels());
            const auto want = p.c.dense(), want_pre = p.pre.dense();
            p.Refill();
            const GemmProblem whole = p.problem();
            for (int64_t row = 0; row < p.M; ++row) {
              GemmProblem alone = whole;
              if (gather) {
                alone.a_rows = whole.a_rows.subspan(static_cast<size_t>(row), 1);
              } else {
                alone.a = whole.a.Rows(row, 1);
              }
              alone.c = whole.c.Rows(row, 1);
              if (keep_pre) alone.pre_activation = whole.pre_activation.Rows(row, 1);
              Gemm(alone, t.ctx);
            }
            EXPECT_EQ(counts.tiles(), after);
            ExpectSameBits(p.c.dense(), want);
            ExpectSameBits(p.pre.dense(), want_pre);
          }
        }
      }
    }
  }
}

TEST(GroupedGemm, ManyMixedProblemsInOneList) {
  for (const KernelTable* table : SupportedKernelTables()) {
    TestContext t(3, table);
    Rng rng(2);
    std::deque<Product> products;
    for (const int64_t M : {0, 1, 40, 0, 300, 7, 13}) {
      const bool swiglu = M % 2 == 0;
      const DType format = M % 3 == 0 ? DType::kBf16 : DType::kF32;
      products.emplace_back(GemmShape{M, swiglu ? 96 : 70, 33 + M % 5},
                            Product::Options{.format = format,
                                             .epilogue = swiglu ? Epilogue::kSwiglu : Epilogue::kAccumulate,
                                             .gather = M != 40,
                                             .keep_pre = swiglu},
                            rng, t.ctx);
    }
    std::vector<GemmProblem> problems;
    for (Product& p : products) problems.push_back(p.problem());
    GroupedGemm(problems, t.ctx);
    for (const Product& p : products) {
      SCOPED_TRACE(fmt::format("{} M {}", table->name, p.M));
      p.Expect();
    }
  }
  TestContext t;
  GroupedGemm({}, t.ctx);  // nothing to do is fine
}

// Neither the threads nor the neighbours nor the number of rows change a bit.
TEST(GroupedGemm, IsTheSameForAnyThreadsNeighboursAndRowCount) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const DType format : kFormats) {
      for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kAccumulate, Epilogue::kSwiglu}) {
        for (const int64_t N : {96, 70}) {
          if (epilogue == Epilogue::kSwiglu && N != 96) continue;
          SCOPED_TRACE(fmt::format("{} {} epilogue {} N {}", table->name, Name(format), static_cast<int>(epilogue), N));
          TestContext one(1, table);
          Rng rng(3);
          Product p({250, N, 77}, {.format = format, .epilogue = epilogue, .gather = true}, rng, one.ctx);
          Gemm(p.problem(), one.ctx);
          const auto want = p.c.dense();
          for (const int threads : {2, 3, 4}) {
            TestContext t(threads, table);
            Product other({31, 64, 20}, {}, rng, t.ctx);
            p.Refill();
            const GemmProblem both[] = {other.problem(), p.problem()};
            GroupedGemm(both, t.ctx);
            ExpectSameBits(p.c.dense(), want);
          }
          // Row by row, and in pieces.
          p.Refill();
          const GemmProblem whole = p.problem();
          for (int64_t row = 0, step = 1; row < p.M; row += step, step = step % 29 + 1) {
            const int64_t count = std::min(step, p.M - row);
            GemmProblem piece = whole;
            piece.a_rows = whole.a_rows.subspan(static_cast<size_t>(row), static_cast<size_t>(count));
            piece.c = whole.c.Rows(row, count);
            Gemm(piece, one.ctx);
          }
          ExpectSameBits(p.c.dense(), want);
        }
      }
    }
  }
}

TEST(GroupedGemm, PowerOfTwoStridesAndLargeEnoughToSplit) {
  TestContext t(2);
  Rng rng(4);
  for (const DType format : kFormats) {
    for (const bool gather : {false, true}) {
      SCOPED_TRACE(fmt::format("{} gather {}", Name(format), gather));
      Product p({260, 96, 200}, {.format = format, .gather = gather, .gap = 1024 - 200}, rng, t.ctx);
      Gemm(p.problem(), t.ctx);
      p.Expect();
    }
  }
}

TEST(GroupedGemm, TakesNoMemoryAfterWarmUp) {
  TestContext t(2);
  Rng rng(5);
  Product p({100, 64, 33}, {.format = DType::kBf16}, rng, t.ctx);
  for (int i = 0; i < 2; ++i) Gemm(p.problem(), t.ctx), t.arena.Reset();
  const int64_t before = t.arena.num_allocations();
  for (int i = 0; i < 5; ++i) Gemm(p.problem(), t.ctx), t.arena.Reset();
  EXPECT_EQ(t.arena.num_allocations(), before);
}

TEST(GroupedGemm, MisuseIsCaught) {
  const ThrowingChecks guard;
  TestContext t;
  Rng rng(6);
  Product p({4, 64, 8}, {}, rng, t.ctx);
  const GemmProblem good = p.problem();
  EXPECT_NO_THROW(Gemm(good, t.ctx));
  const auto expect_caught = [&](auto change) {
    GemmProblem bad = good;
    change(bad);
    EXPECT_THROW(Gemm(bad, t.ctx), CheckError);
  };
  const std::vector<int32_t> three = {0, 1, 2}, outside = {0, 1, 2, 4}, negative = {0, 1, 2, -1};
  FencedMatrix narrow(4, 31), half(4, 32), short_c(3, 64);
  expect_caught([&](GemmProblem& g) { g.weight = nullptr; });
  expect_caught([&](GemmProblem& g) { g.a.cols = 7; });
  expect_caught([&](GemmProblem& g) { g.a = g.a.Rows(0, 3); });
  expect_caught([&](GemmProblem& g) { g.a_rows = three; });
  expect_caught([&](GemmProblem& g) { g.a_rows = outside; });
  expect_caught([&](GemmProblem& g) { g.a_rows = negative; });
  expect_caught([&](GemmProblem& g) { g.c = narrow.view(); });
  expect_caught([&](GemmProblem& g) { g.c = short_c.view(); });
  expect_caught([&](GemmProblem& g) { g.epilogue = Epilogue::kSwiglu; });  // c is too wide
  expect_caught([&](GemmProblem& g) { g.pre_activation = p.c.view(); });   // for SwiGLU only
  expect_caught([&](GemmProblem& g) { g.epilogue = Epilogue::kSwiglu, g.c = half.view(), g.pre_activation = narrow.view(); });
  expect_caught([&](GemmProblem& g) { g.a.dtype = DType::kBf16; });  // the weight is float32
  expect_caught([&](GemmProblem& g) { g.epilogue = Epilogue::kAccumulate, g.c.dtype = DType::kBf16; });
  // Views that no check has seen: negative extents, rows that overlap.
  expect_caught([&](GemmProblem& g) { g.a.rows = g.c.rows = -1; });
  expect_caught([&](GemmProblem& g) { g.a.stride = 7; });
  expect_caught([&](GemmProblem& g) { g.c.stride = 63; });
  expect_caught([&](GemmProblem& g) { g.a.stride = -8; });
  const auto expect_caught_with = [&](auto change) {  // another weight, and matrices that fit it
    PackedWeight weight = p.packed;
    change(weight);
    expect_caught([&](GemmProblem& g) {
      g.weight = &weight, g.a.cols = weight.K, g.a.stride = std::max(g.a.stride, weight.K);
      g.c.cols = weight.N;
    });
  };
  expect_caught_with([](PackedWeight& w) { w.N = -32; });
  expect_caught_with([](PackedWeight& w) { w.K = -2; });
  FencedMatrix pre(4, 64);
  const auto swiglu = [&](int64_t stride) {
    GemmProblem g = good;
    g.epilogue = Epilogue::kSwiglu, g.c = half.view(), g.pre_activation = pre.view();
    g.pre_activation.stride = stride;
    Gemm(g, t.ctx);
  };
  EXPECT_NO_THROW(swiglu(64));
  EXPECT_THROW(swiglu(63), CheckError);
}

// ---- weight gradients -------------------------------------------------------------------------------------------------------

struct WeightGrad {
  int64_t M, N, K;
  DType format;
  FencedMatrix d_y, x, d_w;
  std::vector<int32_t> rows;
  std::vector<float> before;

  WeightGrad(GemmShape s, DType f, bool gather, Rng& rng, int64_t gap = 3)
      : M(s.M), N(s.N), K(s.K), format(f), d_y(s.M, s.N, gap), x(gather ? s.M / 2 + 3 : s.M, s.K, gap), d_w(s.N, s.K, gap) {
    FillNormal(d_y.view(), rng), FillNormal(x.view(), rng), FillNormal(d_w.view(), rng);
    if (gather) rows = RandomInts(M, x.view().rows, rng);
    before = d_w.dense();
  }
  WeightGradProblem problem() {
    return {.d_y = d_y.view(), .x = x.view(), .x_rows = rows, .d_w = d_w.view(), .format = format};
  }
  void Expect() const {
    const bool bf16 = format == DType::kBf16;
    const auto row = [&](int64_t m) { return rows.empty() ? m : rows[static_cast<size_t>(m)]; };
    auto want = Multiply(
        N, K, M, [&](int64_t n, int64_t m) { return AsInput(d_y.view()(m, n), bf16); },
        [&](int64_t k, int64_t m) { return AsInput(x.view()(row(m), k), bf16); });
    std::vector<double> bounds;
    for (size_t i = 0; i < want.value.size(); ++i) {
      want.value[i] += before[i];
      bounds.push_back(DotTolerance(M + 2, want.sum_abs[i] + std::fabs(before[i])).absolute);
    }
    EXPECT_TRUE(d_y.Intact() && x.Intact() && d_w.Intact());
    ExpectClose(d_w.dense(), want.value, bounds);
    if (M == 0) ExpectSameBits(d_w.dense(), before);
  }
};

TEST(GroupedWeightGrad, MatchesTheTwinAndAdds) {
  for (const KernelTable* table : SupportedKernelTables()) {
    TestContext t(2, table);
    Rng rng(7);
    for (const GemmShape& shape : GemmShapes()) {
      for (const DType format : kFormats) {
        for (const bool gather : {false, true}) {
          SCOPED_TRACE(
              fmt::format("{} M {} N {} K {} {} gather {}", table->name, shape.M, shape.N, shape.K, Name(format), gather));
          WeightGrad g(shape, format, gather, rng);
          GroupedWeightGrad({{g.problem()}}, t.ctx);
          g.Expect();
        }
      }
    }
  }
}

TEST(GroupedWeightGrad, IsTheSameForAnyThreadsAndNeighbours) {
  for (const KernelTable* table : SupportedKernelTables()) {
    std::vector<std::vector<float>> want;
    for (const int threads : {1, 2, 3, 4}) {
      TestContext t(threads, table);
      Rng rng(8);
      std::deque<WeightGrad> grads;
      for (const int64_t M : {0, 1, 5, 300, 700, 32}) {  // 700 rows: several chunks of the contraction
        for (const DType format : kFormats) {
          grads.emplace_back(GemmShape{M, 40 + M % 7, M == 700 ? 64 : 50}, format, M % 2 == 0, rng);
        }
      }
      std::vector<WeightGradProblem> problems;
      for (WeightGrad& g : grads) problems.push_back(g.problem());
      GroupedWeightGrad(problems, t.ctx);
      for (size_t i = 0; i < grads.size(); ++i) {
        SCOPED_TRACE(fmt::format("{} threads {} M {} {}", table->name, threads, grads[i].M, Name(grads[i].format)));
        if (threads == 1) want.push_back(grads[i].d_w.dense());
        if (threads == 2) grads[i].Expect();
        ExpectSameBits(grads[i].d_w.dense(), want[i]);
        // By itself, too.
        grads[i].d_w.Fill(grads[i].before);
        GroupedWeightGrad({{grads[i].problem()}}, t.ctx);
        ExpectSameBits(grads[i].d_w.dense(), want[i]);
      }
    }
  }
}

// So many tiles and panels that items are halved, and several chunks of the contraction.
TEST(GroupedWeightGrad, IsTheSameHoweverItsItemsAreHalved) {
  constexpr int64_t M = 600, N = 200, K = 600, kEvery = 5;  // the twin has every fifth row
  for (const DType format : kFormats) {
    Rng rng(14);
    WeightGrad g({M, N, K}, format, false, rng);
    const bool bf16 = format == DType::kBf16;
    auto twin = Multiply(
        N / kEvery, K, M, [&](int64_t n, int64_t m) { return AsInput(g.d_y.view()(m, kEvery * n + kEvery - 1), bf16); },
        [&](int64_t k, int64_t m) { return AsInput(g.x.view()(m, k), bf16); });
    std::vector<double> bounds;
    for (size_t i = 0; i < twin.value.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      const double before = g.before[static_cast<size_t>((kEvery * (at / K) + kEvery - 1) * K + at % K)];
      twin.value[i] += before;
      bounds.push_back(DotTolerance(M + 2, twin.sum_abs[i] + std::fabs(before)).absolute);
    }
    for (const KernelTable* table : SupportedKernelTables()) {
      std::vector<float> want;
      for (const int threads : {1, 2, 3, 4}) {
        SCOPED_TRACE(fmt::format("{} {} threads {}", table->name, Name(format), threads));
        TestContext t(threads, table);
        g.d_w.Fill(g.before);
        GroupedWeightGrad({{g.problem()}}, t.ctx);
        EXPECT_TRUE(g.d_w.Intact());
        if (threads > 1) {
          ExpectSameBits(g.d_w.dense(), want);
          continue;
        }
        want = g.d_w.dense();
        std::vector<float> rows;
        for (int64_t n = kEvery - 1; n < N; n += kEvery) {
          const auto row = g.d_w.view().row_span(n);
          rows.insert(rows.end(), row.begin(), row.end());
        }
        ExpectClose(rows, twin.value, bounds);
      }
    }
  }
}

TEST(GroupedWeightGrad, PowerOfTwoStrides) {
  TestContext t(2);
  Rng rng(9);
  for (const DType format : kFormats) {
    WeightGrad g({100, 96, 64}, format, false, rng, 1024 - 64);
    GroupedWeightGrad({{g.problem()}}, t.ctx);
    g.Expect();
  }
}

TEST(GroupedWeightGrad, MisuseIsCaught) {
  const ThrowingChecks guard;
  TestContext t;
  Rng rng(10);
  WeightGrad g({4, 3, 5}, DType::kF32, false, rng);
  const std::vector<int32_t> three = {0, 1, 2}, outside = {0, 1, 2, 4};
  const auto expect_caught = [&](auto change) {
    WeightGradProblem bad = g.problem();
    change(bad);
    EXPECT_THROW(GroupedWeightGrad({&bad, 1}, t.ctx), CheckError);
  };
  expect_caught([&](WeightGradProblem& p) { p.x = p.x.Rows(0, 3); });
  expect_caught([&](WeightGradProblem& p) { p.x_rows = three; });
  expect_caught([&](WeightGradProblem& p) { p.x_rows = outside; });
  expect_caught([&](WeightGradProblem& p) { p.d_w = p.d_w.Cols(0, 4); });
  expect_caught([&](WeightGradProblem& p) { p.d_w = p.d_w.Rows(0, 2); });
  expect_caught([&](WeightGradProblem& p) { p.format = DType::kI32; });
  expect_caught([&](WeightGradProblem& p) { p.d_y.rows = p.x.rows = -1; });
  expect_caught([&](WeightGradProblem& p) { p.d_y.cols = p.d_w.rows = -3; });
  expect_caught([&](WeightGradProblem& p) { p.x.cols = p.d_w.cols = -5; });
  expect_caught([&](WeightGradProblem& p) { p.d_y.stride = 2; });
  expect_caught([&](WeightGradProblem& p) { p.x.stride = 4; });
  expect_caught([&](WeightGradProblem& p) { p.d_w.stride = 4; });
  ExpectSameBits(g.d_w.dense(), g.before);
}

// ---- packing ----------------------------------------------------------------------------------------------------------------

TEST(Pack, BothSidesHoldTheMatrixAndItsTranspose) {
  TestContext t(2);
  Rng rng(11);
  for (const auto& [N, K] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {31, 7}, {32, 64}, {70, 33}, {65, 0}}) {
    FencedMatrix w(N, K);
    FillNormal(w.view(), rng);
    for (const DType format : kFormats) {
      for (const PackSide side : {PackSide::kForward, PackSide::kTransposed}) {
        SCOPED_TRACE(fmt::format("[{},{}] {} side {}", N, K, Name(format), static_cast<int>(side)));
        const bool forward = side == PackSide::kForward;
        const auto size = static_cast<size_t>(PackedBytes(format, N, K, side));
        const AlignedBytes bytes = AllocateAligned(size);
        const PackedWeight p = Pack(w.view(), format, side, {bytes.get(), size}, t.ctx);
        EXPECT_EQ(p.N, forward ? N : K);
        EXPECT_EQ(p.K, forward ? K : N);
        EXPECT_EQ(static_cast<int64_t>(size), p.bytes());
        for (int64_t n = 0; n < p.num_panels() * kPanel; ++n) {
          for (int64_t k = 0; k < (format == DType::kBf16 ? p.K + p.K % 2 : p.K); ++k) {
            const float want = n >= p.N || k >= p.K ? 0.0f : forward ? w.view()(n, k) : w.view()(k, n);
            const std::byte* panel = p.data + n / kPanel * p.panel_bytes();
            if (format == DType::kF32) {
              EXPECT_EQ(reinterpret_cast<const float*>(panel)[k * kPanel + n % kPanel], want);
            } else {
              EXPECT_EQ(reinterpret_cast<const Bf16*>(panel)[(k / 2 * kPanel + n % kPanel) * 2 + k % 2].bits,
                        ToBf16(want).bits);
            }
          }
        }
      }
    }
  }
}

TEST(Pack, MisuseIsCaught) {
  const ThrowingChecks guard;
  TestContext t;
  FencedMatrix w(3, 4);
  const AlignedBytes bytes = AllocateAligned(4096);
  EXPECT_THROW(Pack(w.view(), DType::kF32, PackSide::kForward, {bytes.get(), 16}, t.ctx), CheckError);
  EXPECT_THROW(Pack(w.view(), DType::kF16, PackSide::kForward, {bytes.get(), 512}, t.ctx), CheckError);
  const auto pack = [&](MatView<const float> m, size_t offset) {
    Pack(m, DType::kF32, PackSide::kForward, {bytes.get() + offset, 512}, t.ctx);
  };
  EXPECT_NO_THROW(pack(w.view(), 0));
  EXPECT_NO_THROW(pack(w.view(), kAlignment));
  EXPECT_THROW(pack(w.view(), 4), CheckError);
  EXPECT_THROW(pack(w.view(), kAlignment / 2), CheckError);
  MatView<const float> overlaps = w.view(), negative = w.view();
  overlaps.stride = 3, negative.rows = -1;
  EXPECT_THROW(pack(overlaps, 0), CheckError);
  EXPECT_THROW(Pack(negative, DType::kF32, PackSide::kForward, {bytes.get(), 0}, t.ctx), CheckError);
}

TEST(PackedWeight, PartsOutsideOfItAreCaught) {
  const ThrowingChecks guard;
  TestContext t;
  const FencedMatrix m(96, 8);
  const AlignedBytes bytes = AllocateAligned(96 * 8 * 4);
  const PackedWeight w = Pack(m.view(), DType::kF32, PackSide::kForward, {bytes.get(), 96 * 8 * 4}, t.ctx);
  EXPECT_EQ(w.Outputs(32, 64).data, w.panel(1));
  EXPECT_THROW(w.Outputs(-32, 32), CheckError);
  EXPECT_THROW(w.Outputs(16, 32), CheckError);
  EXPECT_THROW(w.Outputs(64, 33), CheckError);
  EXPECT_THROW(w.Outputs(32, -32), CheckError);
  EXPECT_EQ(w.Inputs(2, 6).panel(1), w.panel(1) + 2 * kPanel * 4);
  EXPECT_THROW(w.Inputs(-2, 4), CheckError);
  EXPECT_THROW(w.Inputs(1, 4), CheckError);
  EXPECT_THROW(w.Inputs(2, 3), CheckError);
  EXPECT_THROW(w.Inputs(4, 6), CheckError);
  EXPECT_THROW(w.Inputs(4, -2), CheckError);
}

}  // namespace
}  // namespace moe::test
