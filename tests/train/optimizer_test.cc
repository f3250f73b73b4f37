#include "moe/train/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "testing/matchers.h"
#include "testing/random.h"

namespace moe {
namespace {

class OptimizerTest : public testing::TestWithParam<const KernelTable*> {
 protected:
  ThreadPool pool_{2};
  Arena arena_;
  ExecContext ctx_{pool_, arena_, *GetParam()};
};

void FillStore(ParameterStore& store, uint64_t seed) {
  store.Add("matrix", {7, 33}, /*decay=*/true);
  store.Add("norm", {65}, /*decay=*/false);
  store.Add("one", {1}, /*decay=*/true);
  store.Add("experts", {3, 16, 129}, /*decay=*/true, 3);
  store.AllocateGradients();
  Rng rng(seed);
  for (Parameter& p : store.all()) test::FillNormal(p.value.span(), rng);
}

// The textbook, in double: Loshchilov & Hutter 2019, algorithm 2, after clipping by the global norm.
struct AdamwTwin {
  std::vector<double> w, m, v;
  void Step(const std::vector<double>& g, double clip_scale, double lr, double decay, int t) {
    for (size_t i = 0; i < w.size(); ++i) {
      const double grad = g[i] * clip_scale;
      m[i] = 0.9 * m[i] + 0.1 * grad;
      v[i] = 0.95 * v[i] + 0.05 * grad * grad;
      const double m_hat = m[i] / (1 - std::pow(0.9, t)), v_hat = v[i] / (1 - std::pow(0.95, t));
      w[i] -= lr * (m_hat / (std::sqrt(v_hat) + 1e-8) + decay * w[i]);
    }
  }
};

TEST_P(OptimizerTest, FollowsTheDoubleTwin) {
  ParameterStore store;
  FillStore(store, 1);
  Optimizer optimizer{.weight_decay = 0.1, .clip = 1};
  optimizer.Reset(store);
  std::vector<AdamwTwin> twins;
  for (const Parameter& p : store.all()) {
    const auto n = static_cast<size_t>(p.value.size());
    twins.push_back({test::Doubles(p.value.span()), std::vector<double>(n), std::vector<double>(n)});
  }
  Rng rng(2);
  constexpr int kSteps = 10;
  for (int t = 1; t <= kSteps; ++t) {
    double squares = 0;
    for (Parameter& p : store.all()) {
      test::FillNormal(p.grad.span(), rng, t % 3 == 0 ? 1e-3 : 1.0);  // some steps are clipped, some are not
      for (const float g : p.grad.span()) squares += static_cast<double>(g) * g;
    }
    const double norm = GlobalGradNorm(store, ctx_);
    EXPECT_NEAR(norm, std::sqrt(squares), 4096 * test::kEpsF32 * norm);  // SumSquares adds up to 4096 in float32
    ApplyAdamw(optimizer, store, 0.01, norm, ctx_);
    size_t i = 0;
    for (const Parameter& p : store.all()) {
      twins[i].Step(test::Doubles(p.grad.span()), norm > 1 ? 1 / norm : 1, 0.01, p.decay ? 0.1 : 0, t);
      // A step moves a value by at most lr / sqrt((1 - beta2) / ...) < 10 lr; each of its about 10 roundings costs an epsilon
      // of the value or of the move; they add up over the steps.
      test::ExpectClose(p.value.span(), twins[i].w, test::Tolerance{t * 12 * test::kEpsF32 * 0.1, t * 4 * test::kEpsF32});
      ++i;
    }
  }
  EXPECT_EQ(optimizer.steps_done, kSteps);
}

TEST_P(OptimizerTest, NoGradientOnlyDecays) {
  ParameterStore store;
  FillStore(store, 3);
  std::vector<float> before(store.all()[0].value.span().begin(), store.all()[0].value.span().end());
  std::vector<float> norm_before(store.all()[1].value.span().begin(), store.all()[1].value.span().end());
  Optimizer optimizer{.weight_decay = 0.5};
  optimizer.Reset(store);
  EXPECT_EQ(GlobalGradNorm(store, ctx_), 0);
  ApplyAdamw(optimizer, store, 0.5, 0, ctx_);
  for (float& x : before) x *= 0.75f;
  test::ExpectClose(store.all()[0].value.span(), before, test::Tolerance{0, 2 * test::kEpsF32});
  test::ExpectSameBits(store.all()[1].value.span(), norm_before);  // norms do not decay
}

TEST_P(OptimizerTest, ThreadsChangeNothing) {
  const auto run = [&](int threads) {
    ThreadPool pool(threads);
    ExecContext ctx{pool, arena_, *GetParam()};
    ParameterStore store;
    store.Add("large", {300, 257}, true);
    store.AllocateGradients();
    Optimizer optimizer;
    optimizer.Reset(store);
    Rng rng(4);
    for (int t = 0; t < 3; ++t) {
      test::FillNormal(store.all()[0].grad.span(), rng);
      ApplyAdamw(optimizer, store, 0.01, GlobalGradNorm(store, ctx), ctx);
    }
    const auto values = store.all()[0].value.span();
    return std::vector<float>(values.begin(), values.end());
  };
  test::ExpectSameBits(run(1), run(3));
}

TEST_P(OptimizerTest, NamesTheFirstTensorThatIsNotFinite) {
  ParameterStore store;
  FillStore(store, 5);
  EXPECT_EQ(FirstNonFiniteGrad(store), "");
  EXPECT_EQ(FirstNonFiniteValue(store), "");
  store.all()[2].value.data()[0] = std::numeric_limits<float>::quiet_NaN();
  store.all()[1].value.data()[64] = -std::numeric_limits<float>::infinity();
  store.all()[0].value.data()[5] = std::numeric_limits<float>::max();
  store.all()[0].grad.data()[6] = std::numeric_limits<float>::quiet_NaN();
  store.all()[3].grad.data()[77] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(FirstNonFiniteValue(store), "norm");
  EXPECT_EQ(FirstNonFiniteGrad(store), "experts");  // backward comes to the last parameters first
  EXPECT_FALSE(std::isfinite(GlobalGradNorm(store, ctx_)));
}

INSTANTIATE_TEST_SUITE_P(Tables, OptimizerTest,
                         testing::ValuesIn(SupportedKernelTables().begin(), SupportedKernelTables().end()),
                         [](const auto& table) { return std::string(table.param->name); });

}  // namespace
}  // namespace moe
