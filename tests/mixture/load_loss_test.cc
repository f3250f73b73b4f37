// The load loss where its formula has edges; against its twin and differences: policy_test.cc.
#include <cmath>

#include "tests/mixture/router_fixture.h"

namespace moe::test {
namespace {

struct Loaded {
  RouterLosses losses;
  std::vector<double> load;
  std::vector<float> d_logits;
};

Loaded Train(const std::string& policy, int64_t E, const std::vector<float>& logits, const std::vector<uint8_t>& valid = {}) {
  Router r(ParsePolicy(policy + ",noise=gaussian,balance_loss=0,z_loss=0", E, "test").value());
  const int64_t T = std::ssize(logits) / E;
  RouterSaved saved;
  const Routing routing =
      Route(r.config, {.logits = {logits.data(), T, E}, .valid = valid, .training = true, .key = 11}, &saved, r.ctx).value();
  Loaded out{.losses = routing.aux.losses, .load = {saved.load.begin(), saved.load.end()}};
  out.d_logits = r.Back(routing, saved, std::vector<float>(routing.gate.size(), 0.0f));
  return out;
}

// By the deviation instead of the variance the gradient here would be 0/0. (vmoe#218)
TEST(Traps, Trap18_LoadLossIsFiniteAtPerfectBalance) {
  constexpr size_t E = 4;
  std::vector<float> logits(E * E, 0.0f);
  for (size_t t = 0; t < E; ++t) logits[t * E + t] = 50;  // each its own, whatever the noise
  const Loaded got = Train("top_k=1,normalize=false,noise_scale=0.5,load_loss=1,importance_loss=1", E, logits);
  EXPECT_EQ(got.load, std::vector<double>(E, 1.0));
  EXPECT_EQ(got.losses.load, 0);
  EXPECT_EQ(got.losses.importance, 0);
  ExpectSameBits(got.d_logits, std::vector<float>(E * E, 0.0f));
  const Loaded none = Train("top_k=1,normalize=false,noise_scale=0.5,load_loss=1", E, {});
  EXPECT_EQ(none.losses.load, 0);
}

// Where all tokens go to one expert the loss is that of one load among zeros, and its gradient pulls that expert down.
TEST(LoadLoss, PullsTheLoadedExpertDown) {
  constexpr size_t E = 5, T = 40;
  std::vector<float> logits(E * T, 0.0f);
  for (size_t t = 0; t < T; ++t) logits[t * E + 3] = 4;
  const Loaded got = Train("top_k=1,normalize=false,noise_scale=1,load_loss=1", E, logits);
  EXPECT_GT(got.losses.load, 2);
  EXPECT_LT(got.losses.load, 4);  // E - 1: nothing for the others
  double loaded = 0, others = 0;
  for (size_t i = 0; i < got.d_logits.size(); ++i) (i % E == 3 ? loaded : others) += static_cast<double>(got.d_logits[i]);
  EXPECT_GT(loaded, 0.01);
  // Only differences of logits count.
  EXPECT_NEAR(loaded + others, 0, E * T * kEpsF32 * loaded);
}

TEST(LoadLoss, PaddingIsInNoSum) {
  constexpr size_t E = 6;
  Rng rng(4);
  const auto rows = NormalFloats(9 * E, rng);
  std::vector<float> padded = rows;
  const std::string policy = "top_k=2,noise_scale=1,load_loss=0.5";
  const Loaded want = Train(policy, E, rows);
  padded.insert(padded.end(), 2 * E, NAN);
  std::vector<uint8_t> valid(11, 1);
  valid[9] = valid[10] = 0;
  const Loaded got = Train(policy, E, padded, valid);
  EXPECT_EQ(got.load, want.load);
  EXPECT_EQ(got.losses.load, want.losses.load);
  ExpectSameBits(std::span(got.d_logits).first(9 * E), std::span(want.d_logits));
  ExpectSameBits(std::span(got.d_logits).subspan(9 * E), std::vector<float>(2 * E, 0.0f));
}

TEST(LoadLoss, IsNotMeasuredWithoutItsNoise) {
  Router r(ParsePolicy("top_k=2,noise=gaussian,noise_scale=1,load_loss=1", 4, "test").value());
  RouterSaved saved;
  const Routing routing = r.Run({1, 2, 3, 4, 4, 3, 2, 1}, {}, &saved).value();  // no training
  EXPECT_EQ(routing.aux.losses.load, 0);
  EXPECT_TRUE(saved.load_slope.empty());
}

TEST(LoadLoss, IsRefusedWhereNoNoiseSaysWhoIsChosen) {
  for (const char* more : {"noise=none", "noise=gumbel,noise_scale=1", "noise=jitter,noise_scale=0.1",
                           "noise=gaussian,noise_scale=1,selection=hash", "noise=gaussian,noise_scale=1,selection=sinkhorn",
                           "noise=gaussian,noise_scale=1,balance_bias=sign", "noise=gaussian,noise_scale=1,groups=2"}) {
    const auto config = ParsePolicy(std::string("top_k=2,load_loss=0.1,") + more, 8, "test");
    ASSERT_FALSE(config) << more;
    EXPECT_EQ(
        config.error().Message(),
        "[test: load_loss] got 0.1, expected 0, or gaussian noise and plain top_k without groups and selection bias: it is "
        "the chance that noise brings an expert among the k best logits");
  }
}

}  // namespace
}  // namespace moe::test
