#include <gtest/gtest.h>

#include <deque>
#include <vector>

#include "tests/ops/gemm_cases.h"

namespace moe::test {
namespace {

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

}  // namespace
}  // namespace moe::test
