#pragma once
// Byte-pair encoding, written for clarity: every step looks at everything again.

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace moe::reference {

using Pair = std::pair<int32_t, int32_t>;

// Replaces the pair by `result` in a word, left to right.
inline std::vector<int32_t> MergePair(const std::vector<int32_t>& word, Pair pair, int32_t result) {
  std::vector<int32_t> out;
  for (size_t i = 0; i < word.size(); ++i) {
    if (i + 1 < word.size() && Pair(word[i], word[i + 1]) == pair) {
      out.push_back(result);
      ++i;
    } else {
      out.push_back(word[i]);
    }
  }
  return out;
}

inline std::vector<int32_t> ByteIds(const std::string& bytes) {
  std::vector<int32_t> ids;
  for (const char c : bytes) ids.push_back(static_cast<uint8_t>(c));
  return ids;
}

// Algorithm 1 of Sennrich et al. 2016 on {piece: count}; ties to the lowest pair; a pair whose bytes are a token already does
// not count. Stops early when no pair occurs twice. Returns the pairs; the i-th makes token 256 + i.
inline std::vector<Pair> TrainBpe(const std::map<std::string, int64_t>& pieces, int num_merges) {
  std::vector<std::pair<std::vector<int32_t>, int64_t>> words;
  for (const auto& [piece, count] : pieces) words.emplace_back(ByteIds(piece), count);
  std::vector<std::string> token;
  for (int byte = 0; byte < 256; ++byte) token.emplace_back(1, static_cast<char>(byte));
  std::vector<Pair> merges;
  while (static_cast<int>(merges.size()) < num_merges) {
    std::map<Pair, int64_t> count;
    for (const auto& [word, times] : words)
      for (size_t i = 0; i + 1 < word.size(); ++i) count[{word[i], word[i + 1]}] += times;
    const std::set<std::string> known(token.begin(), token.end());
    Pair best;
    int64_t best_count = 1;
    for (const auto& [pair, times] : count) {
      if (times > best_count && !known.contains(token[pair.first] + token[pair.second])) best = pair, best_count = times;
    }
    if (best_count < 2) break;
    for (auto& [word, times] : words) word = MergePair(word, best, static_cast<int32_t>(token.size()));
    token.push_back(token[best.first] + token[best.second]);
    merges.push_back(best);
  }
  return merges;
}

// One piece under merges: as long as some pair has a rule, applies the rule of lowest rank everywhere.
inline std::vector<int32_t> EncodePiece(const std::string& piece, const std::vector<Pair>& merges) {
  std::vector<int32_t> word = ByteIds(piece);
  for (;;) {
    size_t rank = merges.size();
    for (size_t i = 0; i + 1 < word.size(); ++i)
      for (size_t r = 0; r < rank; ++r)
        if (merges[r] == Pair(word[i], word[i + 1])) rank = r;
    if (rank == merges.size()) return word;
    word = MergePair(word, merges[rank], static_cast<int32_t>(256 + rank));
  }
}

}  // namespace moe::reference
