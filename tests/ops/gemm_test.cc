#include "moe/ops/gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <vector>

#include "tests/ops/gemm_cases.h"

namespace moe::test {
namespace {

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

}  // namespace
}  // namespace moe::test
