#include "moe/planner/token_experts.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>

#include "moe/base/rng.h"
#include "testing/matchers.h"

namespace moe::test {
namespace {

// Owns what TokenExperts looks at: rows with their token and experts.
struct Choices {
  int64_t E;
  std::vector<int32_t> ids, expert;
  std::vector<int64_t> slot_begin = {0};

  explicit Choices(int64_t num_experts) : E(num_experts) {}
  void Add(int32_t id, const std::vector<int32_t>& experts, int count = 1) {
    for (int i = 0; i < count; ++i) {
      ids.push_back(id);
      expert.insert(expert.end(), experts.begin(), experts.end());
      slot_begin.push_back(std::ssize(expert));
    }
  }
  TokenExperts view() const { return {E, ids, slot_begin, expert}; }
};

// Two experts that each take one of two tokens: one bit, all there is.
TEST(MutualInformation, OfExpertsThatAreTheirToken) {
  Choices c(2);
  c.Add(7, {0}, 500);
  c.Add(3, {1}, 500);
  const MutualInformation got = MeasureInformation(c.view(), 1);
  EXPECT_DOUBLE_EQ(got.bits, 1);
  EXPECT_DOUBLE_EQ(got.expert_bits, 1);
  // Shuffled, chance leaves (E-1)(X-1) / (2 N ln 2) bits on average (Miller 1955): 0.00072 here, four draws of a chi-square.
  EXPECT_GT(got.shuffled_bits, 0);
  EXPECT_LT(got.shuffled_bits, 0.01);
  EXPECT_DOUBLE_EQ(got.excess_bits(), got.bits - got.shuffled_bits);
}

// n(e,x) of 3 slots of token 1 for expert 0, 1 for expert 1; of token 2 the other way round.
TEST(MutualInformation, ByHand) {
  Choices c(2);
  c.Add(1, {0}, 3);
  c.Add(1, {1}, 1);
  c.Add(2, {0}, 1);
  c.Add(2, {1}, 3);
  // 6/8 log2(3 * 8 / 16) + 2/8 log2(8 / 16)
  EXPECT_NEAR(MeasureInformation(c.view(), 1).bits, 0.75 * std::log2(1.5) - 0.25, 1e-15);
}

TEST(MutualInformation, OfExpertsThatDoNotLookIsAllChance) {
  Choices c(8);
  Rng rng(3);
  for (int t = 0; t < 4000; ++t) {
    const auto first = static_cast<int32_t>(rng.Below(8)), second = static_cast<int32_t>((first + 1 + rng.Below(7)) % 8);
    c.Add(static_cast<int32_t>(rng.Below(300)), {first, second});
  }
  const MutualInformation got = MeasureInformation(c.view(), 1);
  // By chance about 7 * 299 / (2 * 8000 ln 2) = 0.19 bits; what is left of it is noise of about a twentieth.
  EXPECT_GT(got.bits, 0.1);
  EXPECT_LT(got.excess_bits(), 0.02);
  EXPECT_NEAR(got.bits, got.shuffled_bits, 0.02);
  EXPECT_EQ(MeasureInformation(c.view(), 1).shuffled_bits, got.shuffled_bits);  // of the seed alone
  EXPECT_NE(MeasureInformation(c.view(), 2).shuffled_bits, got.shuffled_bits);
}

// Against sums over a map, in another order.
TEST(MutualInformation, IsTheTwins) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    Rng rng(seed);
    const int64_t E = 1 + rng.Below(9);
    Choices c(E);
    for (int64_t t = rng.Below(200); t > 0; --t) {
      std::vector<int32_t> experts;
      for (int32_t e = 0; e < E; ++e) {
        if (rng.Below(3) == 0) experts.push_back(e);
      }
      c.Add(static_cast<int32_t>(rng.Below(12)), experts);
    }
    std::map<int32_t, double> of_token, of_expert;
    std::map<std::pair<int32_t, int32_t>, double> joint;
    double total = 0;
    for (size_t t = 0; t < c.ids.size(); ++t) {
      for (int64_t s = c.slot_begin[t]; s < c.slot_begin[t + 1]; ++s, ++total) {
        const int32_t e = c.expert[static_cast<size_t>(s)];
        ++of_token[c.ids[t]], ++of_expert[e], ++joint[{c.ids[t], e}];
      }
    }
    double want = 0, entropy = 0;
    for (const auto& [key, n] : joint) {
      want += n / total * std::log2(n / total / (of_token[key.first] / total * (of_expert[key.second] / total)));
    }
    for (const auto& [e, n] : of_expert) entropy -= n / total * std::log2(n / total);
    const MutualInformation got = MeasureInformation(c.view(), seed);
    EXPECT_NEAR(got.bits, want, 1e-12) << seed;
    EXPECT_NEAR(got.expert_bits, entropy, 1e-12) << seed;
    EXPECT_LE(got.bits, got.expert_bits + 1e-12);
  }
}

TEST(LikedTokens, ByLiftThenCountThenId) {
  Choices c(2);
  c.Add(9, {0}, 6);      // expert 0 alone
  c.Add(4, {0}, 6);      // the same lift and count: the lower id first
  c.Add(5, {0}, 8);      // the same lift, more of them
  c.Add(1, {0}, 2);      // two are too few to say
  c.Add(2, {0, 1}, 10);  // both alike
  c.Add(3, {1}, 9);
  c.Add(3, {0}, 3);
  const auto liked = LikedTokens(c.view(), 3, 10);
  ASSERT_EQ(liked.size(), 2u);
  const double slots = 54, zero = 35, one = 19;
  ASSERT_EQ(liked[0].size(), 3u);
  EXPECT_EQ(liked[0][0].id, 5);
  EXPECT_EQ(liked[0][0].count, 8);
  EXPECT_DOUBLE_EQ(liked[0][0].lift, slots / zero);
  EXPECT_EQ(liked[0][1].id, 4);
  EXPECT_EQ(liked[0][2].id, 9);
  ASSERT_EQ(liked[1].size(), 2u);
  EXPECT_EQ(liked[1][0].id, 3);
  EXPECT_DOUBLE_EQ(liked[1][0].lift, 9 / 12.0 / (one / slots));
  EXPECT_EQ(liked[1][1].id, 2);
  EXPECT_DOUBLE_EQ(liked[1][1].lift, 0.5 / (one / slots));
  EXPECT_EQ(LikedTokens(c.view(), 3, 1)[0].size(), 1u);
  EXPECT_EQ(LikedTokens(c.view(), 1, 10)[0].size(), 4u);  // the rare ones too
  EXPECT_EQ(LikedTokens(c.view(), 100, 10)[0].size(), 0u);
}

TEST(LikedTokens, OfNothing) {
  const Choices none(3);
  EXPECT_EQ(LikedTokens(none.view(), 1, 5), (std::vector<std::vector<LikedToken>>(3)));
  const MutualInformation got = MeasureInformation(none.view(), 1);
  EXPECT_EQ(got.bits, 0);
  EXPECT_EQ(got.expert_bits, 0);
  Choices relu(2);
  relu.Add(5, {}, 4);  // a token may have no expert
  EXPECT_EQ(MeasureInformation(relu.view(), 1).bits, 0);
  EXPECT_TRUE(LikedTokens(relu.view(), 1, 5)[1].empty());
}

}  // namespace
}  // namespace moe::test
