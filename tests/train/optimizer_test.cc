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

// Every parameter, nobody multiplying with it.
std::vector<OptimizedParameter> Bare(ParameterStore& store) {
  std::vector<OptimizedParameter> all;
  for (Parameter& p : store.all()) all.push_back({.parameter = &p});
  return all;
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
    std::vector<std::vector<double>> grads;
    for (const Parameter& p : store.all()) grads.push_back(test::Doubles(p.grad.span()));
    ApplyAdamw(optimizer, Bare(store), 0.01, norm, ctx_);
    size_t i = 0;
    for (const Parameter& p : store.all()) {
      for (const float g : p.grad.span()) EXPECT_EQ(g, 0);
      twins[i].Step(grads[i], norm > 1 ? 1 / norm : 1, 0.01, p.decay ? 0.1 : 0, t);
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
  ApplyAdamw(optimizer, Bare(store), 0.5, 0, ctx_);
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
      ApplyAdamw(optimizer, Bare(store), 0.01, GlobalGradNorm(store, ctx), ctx);
    }
    const auto values = store.all()[0].value.span();
    return std::vector<float>(values.begin(), values.end());
  };
  test::ExpectSameBits(run(1), run(3));
}

TEST_P(OptimizerTest, ASkippedExpertStaysAsItIs) {
  constexpr int64_t kExperts = 5, kN = 33, kK = 40;
  for (const DType format : {DType::kF32, DType::kBf16}) {
    struct Side {
      ParameterStore store;
      Optimizer optimizer;
      PackedParameter packed;
      explicit Side(DType dtype, ExecContext& ctx) : packed(&store.Add("experts", {kExperts, kN, kK}, true, kExperts), dtype) {
        store.AllocateGradients();
        optimizer.Reset(store);
        Rng rng(6);
        test::FillNormal(store.all()[0].value.span(), rng);
        packed.Repack(true, ctx);
      }
      void Step(std::span<const int64_t> counts, uint64_t seed, ExecContext& ctx) {
        Rng rng(seed);
        test::FillNormal(store.all()[0].grad.span(), rng);
        const OptimizedParameter p{.parameter = &store.all()[0], .packed = &packed, .tokens_per_expert = counts};
        ApplyAdamw(optimizer, {&p, 1}, 0.1, 1, ctx);
      }
      // All that is kept of an expert, as bits.
      std::vector<uint32_t> Bits(int64_t e) const {
        std::vector<uint32_t> bits;
        const auto add = [&](const void* data, int64_t bytes) {
          const auto* p = static_cast<const uint32_t*>(data);
          bits.insert(bits.end(), p, p + bytes / 4);
        };
        for (const Tensor* t : {&store.all()[0].value, &optimizer.m[0], &optimizer.v[0]})
          add(t->data() + e * kN * kK, 4 * kN * kK);
        for (const PackedWeight& w : {packed.forward(e), packed.transposed(e)}) add(w.data, w.bytes());
        return bits;
      }
    };
    Side skipping(format, ctx_), ordinary(format, ctx_);
    skipping.Step({}, 1, ctx_), ordinary.Step({}, 1, ctx_);  // moments that would move an expert by themselves
    std::vector<std::vector<uint32_t>> before;
    for (int64_t e = 0; e < kExperts; ++e) before.push_back(skipping.Bits(e));
    const std::vector<int64_t> counts = {3, 0, 1, 0, 0};
    skipping.Step(counts, 2, ctx_), ordinary.Step({}, 2, ctx_);
    for (int64_t e = 0; e < kExperts; ++e) {
      const bool idle = counts[static_cast<size_t>(e)] == 0;
      EXPECT_EQ(skipping.Bits(e) == before[static_cast<size_t>(e)], idle) << e;
      EXPECT_EQ(skipping.Bits(e) == ordinary.Bits(e), !idle) << e;
    }
    EXPECT_EQ(skipping.optimizer.steps_done, 2);
  }
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
