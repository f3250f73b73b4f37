#pragma once
// Who likes whom: which tokens each expert of a layer takes more often than others do, and how much an expert tells of its
// token.

#include <cstdint>
#include <span>
#include <vector>

namespace moe {

// The choices of one layer. Row t has the token ids[t] and the experts expert[slot_begin[t]] up to expert[slot_begin[t+1]].
struct TokenExperts {
  int64_t num_experts = 0;
  std::span<const int32_t> ids;         // [T]
  std::span<const int64_t> slot_begin;  // [T+1]
  std::span<const int32_t> expert;      // [S]

  int64_t num_rows() const { return static_cast<int64_t>(ids.size()); }
};

struct LikedToken {
  int32_t id = 0;
  int64_t count = 0;  // slots of this token that are the expert's
  double lift = 0;    // p(token | expert) / p(token), over slots; log2 of it is the pointwise mutual information

  bool operator==(const LikedToken&) const = default;
};
// Of each expert, the tokens with the largest lift above 1, at most `most`; of equal ones those with more slots, then lower
// ids. Only tokens that the expert took least_count times or more: the lift of rare ones is chance.
std::vector<std::vector<LikedToken>> LikedTokens(const TokenExperts& choices, int64_t least_count, int64_t most);

// Bits that the expert of a slot tells of its token: sum over both of p(e, x) log2(p(e, x) / (p(e) p(x))).
// Few slots make it too large, even if experts do not look at tokens at all; so the same is measured with the tokens shuffled
// among the rows, experts of a row staying together, and what is left over is what experts really tell.
struct MutualInformation {
  double bits = 0;
  double shuffled_bits = 0;  // mean of kShuffles
  double expert_bits = 0;    // entropy of the expert of a slot: no more can be told
  double excess_bits() const { return bits > shuffled_bits ? bits - shuffled_bits : 0; }
};
inline constexpr int kShuffles = 4;
MutualInformation MeasureInformation(const TokenExperts& choices, uint64_t seed);

}  // namespace moe
