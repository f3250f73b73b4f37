// What RouterAux says of gates and logits beside the losses.

#include <algorithm>
#include <cmath>

#include "tests/mixture/router_fixture.h"

namespace moe::test {
namespace {

struct Wanted {
  double gate_sum = 0, largest_logit = 0;
};

// Gates are added as they stand in the routing; each token's sum is off by half a unit.
Wanted Naive(const Routing& routing, const std::vector<float>& logits, const std::vector<uint8_t>& valid) {
  Wanted wanted;
  const size_t T = routing.slot_begin.size() - 1, E = logits.size() / std::max<size_t>(T, 1);
  for (size_t t = 0; t < T; ++t) {
    if (!valid.empty() && valid[t] == 0) continue;
    for (size_t e = 0; e < E; ++e) {
      wanted.largest_logit = std::max(wanted.largest_logit, std::fabs(static_cast<double>(logits[t * E + e])));
    }
    for (int32_t s = routing.slot_begin[t]; s < routing.slot_begin[t + 1]; ++s) {
      wanted.gate_sum += routing.gate[static_cast<size_t>(s)];
    }
  }
  return wanted;
}

TEST(RouterAux, GatesAndTheLargestLogitAreThoseOfTheTokens) {
  for (const char* policy :
       {"top_k=2", "top_k=3,normalize=false,scale=2.5", "score=sigmoid,normalize=false,top_k=1", "score=relu,normalize=false",
        "selection=expert_choice,normalize=false", "score=sparsemixer,normalize=false"}) {
    for (const int64_t E : {3, 7, 8, 17, 64}) {
      for (const int64_t T : {0, 1, 64, 65, 200}) {
        SCOPED_TRACE(fmt::format("{} E {} T {}", policy, E, T));
        Rng rng(static_cast<uint64_t>(E * 1000 + T));
        std::vector<float> logits(static_cast<size_t>(T * E));
        for (float& z : logits) z = static_cast<float>(2 * rng.Normal());
        std::vector<uint8_t> valid(static_cast<size_t>(T), 1);
        if (T > 2) {  // padding holds anything
          valid[1] = valid.back() = 0;
          std::fill_n(logits.begin() + E, E, NAN);
          logits.back() = -1e30f;
        }
        Router one(*ParsePolicy(policy, E, "p"), 1), three(one.config, 3);
        const Routing routing = one.Run(logits, valid).value();
        const Wanted wanted = Naive(routing, logits, valid);
        EXPECT_EQ(routing.aux.largest_logit, wanted.largest_logit);
        EXPECT_NEAR(routing.aux.gate_sum, wanted.gate_sum, static_cast<double>(T) * kEntropyUnit);
        RouterSaved saved;
        const Routing again = three.Run(logits, valid, &saved).value();
        EXPECT_EQ(again.aux.gate_sum, routing.aux.gate_sum);
        EXPECT_EQ(again.aux.largest_logit, routing.aux.largest_logit);
      }
    }
  }
}

// The largest may be anywhere in a row, and below 0.
TEST(RouterAux, TheLargestLogitIsFoundInEveryPlace) {
  for (const int64_t E : {1, 7, 8, 9, 16, 19}) {
    for (int64_t e = 0; e < E; ++e) {
      std::vector<float> logits(static_cast<size_t>(E), 0.5f);
      logits[static_cast<size_t>(e)] = -3;
      Router router({.num_experts = E, .top_k = 1, .normalize = false});
      EXPECT_EQ(router.Run(logits)->aux.largest_logit, 3) << e << " of " << E;
      logits[static_cast<size_t>(e)] = NAN;
      EXPECT_FALSE(router.Run(logits)) << e << " of " << E;
      logits[static_cast<size_t>(e)] = -INFINITY;
      EXPECT_FALSE(router.Run(logits)) << e << " of " << E;
    }
  }
}

// Parts of a batch sum to the whole, bit for bit.
TEST(RouterAux, MicroBatchesAddUpExactly) {
  constexpr int64_t kE = 16, kT = 300;
  Rng rng(5);
  std::vector<float> logits(kT * kE);
  for (float& z : logits) z = static_cast<float>(20 * rng.Normal());  // gates of every size, down to 1e-30
  Router router({.num_experts = kE, .top_k = 3, .normalize = false});
  const double whole = router.Run(logits)->aux.gate_sum;
  for (const int64_t part : {1, 7, 64, 100}) {
    double sum = 0;
    for (int64_t begin = 0; begin < kT; begin += part) {
      const int64_t end = std::min(kT, begin + part);
      sum += router.Run({logits.begin() + begin * kE, logits.begin() + end * kE})->aux.gate_sum;
    }
    EXPECT_EQ(sum, whole) << part;
  }
}

// Noise is chance's: the largest logit is the router's own.
TEST(RouterAux, NoiseIsNotInTheLargestLogit) {
  Router router(*ParsePolicy("noise=gaussian,noise_scale=100", 4, "p"));
  const std::vector<float> logits = {1, -2, 0, 0.5};
  const auto routing = Route(router.config, {.logits = {logits.data(), 1, 4}, .training = true}, nullptr, router.ctx);
  EXPECT_EQ(routing->aux.largest_logit, 2);
}

}  // namespace
}  // namespace moe::test
