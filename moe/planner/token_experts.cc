#include "moe/planner/token_experts.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "moe/base/check.h"
#include "moe/base/rng.h"

namespace moe {
namespace {

// Counts of slots, tokens numbered in the order of their ids.
struct Table {
  std::vector<int32_t> distinct;   // [X] ids, ascending
  std::vector<int32_t> token;      // [T] row -> 0..X-1
  std::vector<int32_t> joint;      // [X,E] at most the rows of the token
  std::vector<int64_t> of_token;   // [X]
  std::vector<int64_t> of_expert;  // [E]
  int64_t E = 0, slots = 0;

  explicit Table(const TokenExperts& choices) : distinct(choices.ids.begin(), choices.ids.end()), E(choices.num_experts) {
    MOE_CHECK(choices.slot_begin.size() == choices.ids.size() + 1, "{} slot ranges of {} rows", choices.slot_begin.size(),
              choices.ids.size());
    std::ranges::sort(distinct);
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    for (const int32_t id : choices.ids) {
      token.push_back(static_cast<int32_t>(std::ranges::lower_bound(distinct, id) - distinct.begin()));
    }
    joint.resize(distinct.size() * static_cast<size_t>(E));
    of_token.resize(distinct.size()), of_expert.resize(static_cast<size_t>(E));
    Count(choices);
  }

  void Count(const TokenExperts& choices) {
    std::ranges::fill(joint, 0), std::ranges::fill(of_token, 0), std::ranges::fill(of_expert, 0);
    slots = 0;
    for (size_t t = 0; t < token.size(); ++t) {
      const auto x = static_cast<size_t>(token[t]);
      for (int64_t s = choices.slot_begin[t]; s < choices.slot_begin[t + 1]; ++s, ++slots) {
        const auto e = static_cast<size_t>(choices.expert[static_cast<size_t>(s)]);
        ++joint[x * static_cast<size_t>(E) + e], ++of_token[x], ++of_expert[e];
      }
    }
  }

  double InformationBits() const {
    double sum = 0;
    for (size_t x = 0; x < distinct.size(); ++x) {
      for (size_t e = 0; e < of_expert.size(); ++e) {
        const auto n = static_cast<double>(joint[x * of_expert.size() + e]);
        if (n == 0) continue;
        sum += n *
               std::log2(n * static_cast<double>(slots) / static_cast<double>(of_token[x]) / static_cast<double>(of_expert[e]));
      }
    }
    return slots == 0 ? 0 : std::max(0.0, sum / static_cast<double>(slots));  // rounding may take it below 0
  }
};

}  // namespace

std::vector<std::vector<LikedToken>> LikedTokens(const TokenExperts& choices, int64_t least_count, int64_t most) {
  const Table table(choices);
  std::vector<std::vector<LikedToken>> liked(static_cast<size_t>(table.E));
  for (size_t e = 0; e < liked.size(); ++e) {
    auto& own = liked[e];
    for (size_t x = 0; x < table.distinct.size(); ++x) {
      const int64_t count = table.joint[x * liked.size() + e];
      if (count < std::max<int64_t>(least_count, 1)) continue;
      const double lift = static_cast<double>(count) * static_cast<double>(table.slots) /
                          static_cast<double>(table.of_token[x]) / static_cast<double>(table.of_expert[e]);
      if (lift > 1) own.push_back({table.distinct[x], count, lift});
    }
    std::ranges::stable_sort(
        own, [](const LikedToken& a, const LikedToken& b) { return a.lift != b.lift ? a.lift > b.lift : a.count > b.count; });
    own.resize(std::min(own.size(), static_cast<size_t>(std::max<int64_t>(most, 0))));
  }
  return liked;
}

MutualInformation MeasureInformation(const TokenExperts& choices, uint64_t seed) {
  Table table(choices);
  MutualInformation out{.bits = table.InformationBits()};
  for (const int64_t n : table.of_expert) {
    if (n == 0) continue;
    const double share = static_cast<double>(n) / static_cast<double>(table.slots);
    out.expert_bits -= share * std::log2(share);
  }
  for (int i = 0; i < kShuffles; ++i) {
    Rng rng(seed, static_cast<uint64_t>(i));
    for (size_t t = table.token.size(); t > 1; --t) {  // Fisher and Yates
      std::swap(table.token[t - 1], table.token[static_cast<size_t>(rng.Below(static_cast<int64_t>(t)))]);
    }
    table.Count(choices);
    out.shuffled_bits += table.InformationBits() / kShuffles;
  }
  return out;
}

}  // namespace moe
