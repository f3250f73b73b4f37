// Layers whose experts differ: what must hold exactly.
#include <algorithm>
#include <cmath>

#include "moe/ops/elementwise.h"
#include "tests/mixture/layer_fixture.h"

namespace moe::test {
namespace {

LayerOptions OptionsOf(const std::vector<std::string>& entries, int64_t top_k = 1) {
  LayerOptions options;
  options.config.router.top_k = top_k;
  options.config.router.normalize = top_k > 1;
  options.config.router.z_loss = options.config.router.balance_loss = 0;
  GiveExperts(options.config, entries);
  return options;
}
// Logits follow x alone: expert e's is x[e].
void RouteByInput(Layer& layer) {
  const auto router = layer.parameter("router").value.mat();
  for (int64_t e = 0; e < router.rows; ++e) {
    for (int64_t d = 0; d < router.cols; ++d) router(e, d) = e == d ? 1 : 0;
  }
  layer.Repacked();
}
std::vector<float> RowTo(std::initializer_list<int64_t> experts, int64_t D) {
  std::vector<float> row(static_cast<size_t>(D), 0.1f);
  float logit = 5;
  for (const int64_t e : experts) row[static_cast<size_t>(e)] = logit, logit -= 1;
  return row;
}

TEST(ExpertKinds, ACopyAloneIsTheIdentity) {
  for (const Executor executor : {Executor::kGrouped, Executor::kPadded, Executor::kLoop}) {
    LayerOptions options = OptionsOf({"1 copy"});
    options.config.executor = executor;
    Layer layer(options);
    Rng rng(1);
    const auto x = NormalFloats(9 * 8, rng), d_y = NormalFloats(9 * 8, rng);
    const LayerStep step = layer.Train(x, d_y);
    ExpectSameBits(step.y, x);
    ExpectSameBits(step.d_x, d_y);
  }
}

TEST(ExpertKinds, AZeroAloneIsNothing) {
  LayerOptions options = OptionsOf({"1 zero"});
  Layer layer(options);
  Rng rng(2);
  const auto x = NormalFloats(9 * 8, rng);
  const LayerStep step = layer.Train(x, x);
  ExpectSameBits(step.y, std::vector<float>(x.size(), 0.0f));
  ExpectSameBits(step.d_x, std::vector<float>(x.size(), 0.0f));
  EXPECT_EQ(step.tokens_per_expert, std::vector<int64_t>{9});
  EXPECT_EQ(step.num_dropped, 0);
}

// One expert of any kind of FFN is that FFN: the products one after the other, without a router.
TEST(ExpertKinds, OneExpertIsTheDenseFfn) {
  for (const DType format : {DType::kF32, DType::kBf16}) {
    LayerOptions options = OptionsOf({"1 relu2 32 plain deep"});
    options.format = format;
    Layer layer(options);
    Rng rng(3);
    const int64_t T = 21;
    const auto x = NormalFloats(T * 8, rng);
    const ExpertWeights& w = layer.layer().weights.experts[0];
    ExecContext& ctx = layer.ctx();
    layer.arena().Reset();
    const AnyMat product = AllocMat(T, 32, format, ctx), hidden = AllocMat(T, 32, format, ctx);
    const AnyMat second = AllocMat(T, 32, format, ctx), last = AllocMat(T, 32, format, ctx);
    std::vector<float> y(x.size());
    Gemm({.a = MatView<const float>(x.data(), T, 8), .weight = &w.gate_up.forward(), .c = product}, ctx);
    Activate(Activation::kRelu2, false, product, hidden, ctx);
    Gemm({.a = hidden, .weight = &w.middle.forward(), .c = second}, ctx);
    Activate(Activation::kRelu2, false, second, last, ctx);
    Gemm({.a = last, .weight = &w.down.forward(), .c = MatView<float>(y.data(), T, 8)}, ctx);
    if (format == DType::kBf16) y = Halves(y).f32;
    ExpectSameBits(layer.Train(x, x).y, y);
  }
}

// Trap 20: gates that are divided by the sum of all include the zero expert's; normalize_after_drop leaves it out; a token of
// zero experts only is 0, not 0/0.
TEST(Traps, Trap20_AZeroExpertsGate) {
  for (const bool after : {false, true}) {
    LayerOptions options = OptionsOf({"2 zero", "2 copy"}, 2);
    options.config.router.normalize_after_drop = after;
    Layer layer(options);
    RouteByInput(layer);
    std::vector<float> x;
    for (const auto& experts : {std::pair{0, 1}, {0, 2}, {3, 2}}) {
      const auto row = RowTo({experts.first, experts.second}, 8);
      x.insert(x.end(), row.begin(), row.end());
    }
    const LayerStep step = layer.Train(x, std::vector<float>(x.size(), 1.0f));
    const float larger = 1 / (1 + std::exp(-1.0f));  // logits 5 and 4
    for (size_t d = 0; d < 8; ++d) {
      EXPECT_EQ(step.y[d], 0);
      EXPECT_NEAR(step.y[8 + d], (after ? 1 : 1 - larger) * x[8 + d], 1e-6 * std::abs(x[8 + d]));
      EXPECT_NEAR(step.y[16 + d], x[16 + d], 1e-6 * std::abs(x[16 + d]));
    }
    EXPECT_EQ(step.gate[0], after ? 0 : larger);
    for (const float g : step.d_x) EXPECT_TRUE(std::isfinite(g));
    for (const float g : step.d_w.router) EXPECT_TRUE(std::isfinite(g));
    EXPECT_EQ(step.num_dropped, 0);
    EXPECT_EQ(step.slot_row, (std::vector<int32_t>{-1, -1, -1, 0, 2, 1}));
    EXPECT_EQ(step.tokens_per_expert, (std::vector<int64_t>{2, 1, 2, 1}));
  }
}

// Trap 15 for every kind: who got no token has a gradient of exactly 0, and who got some has not.
TEST(Traps, Trap15_IdleExpertsOfEveryKindHaveZeroGradients) {
  const std::vector<std::string> kinds = {"2 silu 16", "2 gelu 16 plain deep", "2 relu2 32 deep", "2 constant", "2 zero"};
  for (const Executor executor : {Executor::kGrouped, Executor::kPadded, Executor::kLoop}) {
    LayerOptions options = OptionsOf(kinds, 2);
    options.config.executor = executor, options.D = 12;
    Layer layer(options);
    RouteByInput(layer);
    std::vector<float> x;
    for (const auto& experts : {std::pair{0, 2}, {4, 6}, {8, 0}}) {  // the first of each pair
      const auto row = RowTo({experts.first, experts.second}, 12);
      x.insert(x.end(), row.begin(), row.end());
    }
    const LayerStep step = layer.Train(x, std::vector<float>(x.size(), 1.0f));
    int64_t checked = 0;
    for (const Parameter& p : layer.store().all()) {
      if (p.experts == 0) continue;
      SCOPED_TRACE(p.name);
      const auto norm = [&](int64_t i) {
        double sum = 0;
        const MatView<float> slice = p.grad.slice(i);
        for (int64_t r = 0; r < slice.rows; ++r) {
          for (const float g : slice.row_span(r)) sum += std::abs(g);
        }
        return sum;
      };
      EXPECT_GT(norm(0), 0);
      EXPECT_EQ(norm(1), 0);
      ++checked;
    }
    EXPECT_EQ(checked, 2 + 3 + 3 + 2);
  }
}

// Each expert's rows are where the plan has them, whatever its neighbours are: all tokens to one kind after the other.
TEST(ExpertKinds, AllTokensToOneExpertOfManyKinds) {
  const std::vector<std::string> kinds = {"1 silu 16", "1 zero", "1 gelu 48 plain", "1 constant", "1 relu2 16 deep", "1 copy"};
  for (int64_t e = 0; e < 6; ++e) {
    SCOPED_TRACE(e);
    Layer all(OptionsOf(kinds)), one(OptionsOf({kinds[static_cast<size_t>(e)]}));
    RouteByInput(all);
    for (Parameter& p : one.store().all()) {
      if (p.experts == 0) continue;
      const std::string name = p.name.substr(p.name.rfind('.') + 1);
      std::ranges::copy(all.parameter(fmt::format("experts.{}.{}", e, name)).value.span(), p.value.span().begin());
    }
    one.Repacked();
    std::vector<float> x;
    for (int64_t t = 0; t < 33; ++t) {
      auto row = RowTo({e}, 8);
      row[7] = static_cast<float>(t) * 0.1f;
      row[static_cast<size_t>(e)] = 30;  // its gate is 1 to the last bit
      x.insert(x.end(), row.begin(), row.end());
    }
    ExpectSameBits(all.Infer(x).y, one.Infer(x).y);
  }
}

TEST(ExpertKinds, SharedGateOfOneHalfHalvesTheSharedExperts) {
  LayerOptions options = OptionsOf({"1 zero"});
  options.config.num_shared_experts = 1, options.config.shared_expert_width = 16;
  Layer plain(options);
  options.config.shared_gate = true;
  Layer gated(options);
  for (Parameter& p : gated.store().all()) {
    if (p.name.ends_with("shared.gate")) {
      std::ranges::fill(p.value.span(), 0.0f);  // sigmoid(0)
    } else {
      std::ranges::copy(plain.store().Find(p.name)->value.span(), p.value.span().begin());
    }
  }
  gated.Repacked();
  Rng rng(8);
  const auto x = NormalFloats(9 * 8, rng);
  std::vector<float> half = plain.Infer(x).y;
  for (float& v : half) v *= 0.5f;
  ExpectSameBits(gated.Infer(x).y, half);
  ExpectSameBits(gated.Train(x, x).y, half);
}

}  // namespace
}  // namespace moe::test
