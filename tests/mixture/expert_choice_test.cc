// Experts that choose their tokens, against scores computed here.
#include <algorithm>
#include <cmath>

#include "testing/reference/bounded.h"
#include "tests/mixture/router_fixture.h"

namespace moe::test {
namespace {

RouterConfig Config(const std::string& score, int64_t k, int64_t E) {
  const std::string policy = "selection=expert_choice,allow_noncausal=true,normalize=false";
  return ParsePolicy(fmt::format("{},score={},top_k={}", policy, score, k), E, "test").value();
}

// Scores of a token as they are defined, with the error that float32 may make, and the three roundings of being kept as a share
// of their sum.
std::vector<Bounded> Scores(const std::string& score, const float* z, int64_t E) {
  std::vector<Bounded> s;
  const double most = *std::max_element(z, z + E);
  Bounded sum(0);
  for (int64_t e = 0; e < E; ++e) {
    const Bounded own(static_cast<double>(z[e]));
    if (score == "softmax") {
      s.push_back(exp(own - Bounded(most)));
    } else if (score == "sigmoid") {
      s.push_back(Bounded(1) / (Bounded(1) + exp(-own)));
    } else {  // sqrt_softplus
      s.push_back(sqrt(Bounded(std::max<double>(z[e], 0)) + log(Bounded(1) + exp(z[e] > 0 ? -own : own))));
    }
    sum += s.back();
  }
  for (Bounded& v : s) {
    if (score == "softmax") v = v / sum;
    v.error += 3 * kEpsF32 * (v.value + v.error);
  }
  return s;
}

enum class Kind { kRandom, kAllToOne, kEqual };
std::vector<float> Logits(Kind kind, int64_t T, int64_t E) {
  Rng rng(static_cast<uint64_t>(T * 7 + E));
  auto z = NormalFloats(T * E, rng);
  for (size_t i = 0; i < z.size(); ++i) {
    if (kind == Kind::kEqual) z[i] = 0.25f;
    if (kind == Kind::kAllToOne && i % static_cast<size_t>(E) == 0) z[i] += 8;
  }
  return z;
}

void ExpectTheirBest(const std::string& score, int64_t k, int64_t E, int64_t T, Kind kind) {
  const std::vector<float> logits = Logits(kind, T, E);
  std::vector<uint8_t> valid;
  std::vector<std::vector<Bounded>> s;  // of each token
  int64_t n = 0;
  for (int64_t t = 0; t < T; ++t) {
    valid.push_back(T < 10 || t % 5 != 0);
    n += valid.back();
    s.push_back(Scores(score, logits.data() + t * E, E));
  }
  Router r(Config(score, k, E), 2);
  RouterSaved saved;
  const Routing routing = r.Run(logits, valid, &saved).value();
  const int64_t each = std::min(n, (n * k + E - 1) / E);
  const auto choices = ChoicesOf(routing.slot_begin, routing.expert);
  ASSERT_EQ(std::ssize(choices), T);
  std::vector<std::vector<bool>> taken(static_cast<size_t>(T), std::vector<bool>(static_cast<size_t>(E), false));
  size_t slot = 0;
  for (size_t t = 0; t < choices.size(); ++t) {
    Bounded before(INFINITY, 0);
    EXPECT_TRUE(valid[t] != 0 || choices[t].empty());
    for (const int64_t e : choices[t]) {
      const Bounded& own = s[t][static_cast<size_t>(e)];
      EXPECT_FALSE(taken[t][static_cast<size_t>(e)]);
      taken[t][static_cast<size_t>(e)] = true;
      EXPECT_NEAR(routing.gate[slot++], own.value, own.error);
      EXPECT_LE(own.value - own.error, before.value + before.error);  // best first
      before = own;
    }
  }
  for (size_t e = 0; e < static_cast<size_t>(E); ++e) {
    int64_t count = 0, first_ones = 0;
    double worst_taken = INFINITY, best_left = -INFINITY;
    for (size_t t = 0; t < taken.size(); ++t) {
      if (valid[t] == 0) continue;
      const bool is_taken = taken[t][e];
      if (kind == Kind::kEqual) {  // ties go to the first
        EXPECT_EQ(is_taken, first_ones++ < each);
      }
      if (is_taken) {
        ++count, worst_taken = std::min(worst_taken, s[t][e].value + s[t][e].error);
      } else {
        best_left = std::max(best_left, s[t][e].value - s[t][e].error);
      }
    }
    EXPECT_EQ(count, each);
    EXPECT_EQ(routing.aux.tokens_per_expert[e], each);
    EXPECT_GE(worst_taken, best_left);
  }
  const Routing inferred = r.Run(logits, valid).value();
  ExpectSameBits(inferred.expert, routing.expert);
  ExpectSameBits(inferred.gate, routing.gate);
}

TEST(ExpertChoice, EveryExpertTakesItsBestTokens) {
  for (const char* score : {"softmax", "sigmoid", "sqrt_softplus"}) {
    for (const Kind kind : {Kind::kRandom, Kind::kAllToOne, Kind::kEqual}) {
      for (const int64_t T : {0, 1, 3, 50}) {
        for (const auto& [E, k] : {std::pair<int64_t, int64_t>{1, 1}, {6, 1}, {6, 2}, {6, 6}, {1024, 2}, {1024, 1024}}) {
          if (E == 1024 && k == E && T > 3) continue;
          SCOPED_TRACE(fmt::format("{} kind {}: {} tokens, {} of {} experts", score, static_cast<int>(kind), T, k, E));
          ExpectTheirBest(score, k, E, T, kind);
        }
      }
    }
  }
}

TEST(ExpertChoice, NamesATokenWhoseLogitIsNotFinite) {
  for (const char* score : {"softmax", "sigmoid", "sqrt_softplus"}) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      auto logits = Logits(Kind::kRandom, 90, 6);
      logits[70 * 6 + 4] = logits[80 * 6] = bad;
      Router r(Config(score, 2, 6));
      RouterSaved saved;
      for (RouterSaved* s : {&saved, static_cast<RouterSaved*>(nullptr)}) {
        const auto routing = r.Run(logits, {}, s);
        ASSERT_FALSE(routing);
        EXPECT_EQ(routing.error().what, fmt::format("token 70: got logit {} for expert 4, expected finite numbers", bad));
      }
    }
  }
}

}  // namespace
}  // namespace moe::test
