// What MoE implementations got wrong, of whole models. docs/testing.md lists all traps.
#include <gtest/gtest.h>

#include <cmath>

#include "moe/model/model.h"
#include "testing/matchers.h"
#include "testing/test_context.h"
#include "testing/tiny_model.h"

namespace moe::test {
namespace {

// ---- 5: each layer has a balance loss of its own.

// Two layers of opposite preference: each is unbalanced, though their counts together are not.
TEST(Traps, Trap05_BalanceLossIsComputedPerLayer) {
  ModelConfig config = TinyMoe();
  constexpr double kCoefficient = 0.5;
  for (LayerSpec& layer : config.layers) {
    layer.moe.router = {
        .num_experts = 2, .top_k = 1, .normalize = false, .bias = true, .balance_loss = kCoefficient, .z_loss = 0};
  }
  TestContext t(2);
  Model model(config, DType::kF32, true);
  FillParameters(model, 3, t.ctx);
  for (size_t l = 0; l < 2; ++l) {  // logits are the bias: 2 for the layer's own expert, 0 for the other
    for (float& w : model.parameters().Find(fmt::format("layers.{}.moe.router", l))->value.span()) w = 0;
    const auto bias = model.parameters().Find(fmt::format("layers.{}.moe.router_bias", l))->value.span();
    bias[l] = 2, bias[1 - l] = 0;
  }
  model.Repack(t.ctx);
  const TinyBatch batch = RandomBatch(config, {7, 4}, 5);
  StepStats stats;
  model.parameters().ZeroGradients();
  ASSERT_TRUE(model.ForwardBackward(batch.step(), batch.targets, /*grad_scale=*/1e-30f, /*aux_scale=*/1, &stats, t.ctx));
  // E sum_e f_e P_e = 2 * 1 * p, p = 1 / (1 + exp(-2)), in each layer; of joined counts f = 1/2 it would be 1, without
  // gradient.
  const double p = 1 / (1 + std::exp(-2.0));
  double sum = 0;
  for (size_t l = 0; l < 2; ++l) {
    SCOPED_TRACE(l);
    EXPECT_EQ(stats.layers[l].tokens_per_expert[l], 11);
    EXPECT_EQ(stats.layers[l].tokens_per_expert[1 - l], 0);
    EXPECT_NEAR(stats.layers[l].balance_loss, 2 * p, 16 * kEpsF32);  // a mean of 11 softmaxes
    sum += stats.layers[l].balance_loss;
    // What is trained: the coefficient times the sum over layers. d/dz of 2 p: 2 p (1 - p), and as much less for the other.
    const auto grad = model.parameters().Find(fmt::format("layers.{}.moe.router_bias", l))->grad.span();
    EXPECT_NEAR(grad[l], kCoefficient * 2 * p * (1 - p), 32 * kEpsF32);
    EXPECT_NEAR(grad[1 - l], -kCoefficient * 2 * p * (1 - p), 32 * kEpsF32);
  }
  EXPECT_NEAR(sum, 4 * p, 32 * kEpsF32);
}

// ---- 21: experts that choose among all tokens see later ones.

TEST(Traps, Trap21_ExpertsThatChooseAreRefusedInACausalModel) {
  ModelConfig config = TinyMoe();
  RouterConfig& router = config.layers[1].moe.router;
  router.selection = RouterSelection::kExpertChoice, router.normalize = false;
  const Status refused = Validate(config, "model.toml");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().Message(),
            "[model.toml: layer 1: selection] got expert_choice, expected another: experts that choose among all tokens see "
            "later ones, which a model that predicts the next token must not; allow_noncausal = true allows it");
  // The reason: with leave, what a model says at a token changes with the tokens after it.
  router.allow_noncausal = true;
  ASSERT_TRUE(Validate(config, "model.toml"));
  TestContext t;
  const auto logits_of_first_half = [&](const ModelConfig& of, int32_t last) {
    Model model(of, DType::kF32, false);
    FillParameters(model, 4, t.ctx);
    TinyBatch batch = RandomBatch(of, {12}, 6);
    for (size_t i = 6; i < 12; ++i) batch.rows[i].token_id = last;
    batch.logit_rows.resize(6);
    t.arena.Reset();
    return Doubles(model.Forward(batch.step(), nullptr, t.ctx).value());
  };
  EXPECT_NE(logits_of_first_half(config, 1), logits_of_first_half(config, 2));
  EXPECT_EQ(logits_of_first_half(TinyMoe(), 1), logits_of_first_half(TinyMoe(), 2));
}

}  // namespace
}  // namespace moe::test
