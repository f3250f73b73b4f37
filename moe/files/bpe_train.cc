#include "moe/files/bpe_train.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <unordered_map>
#include <unordered_set>

#include "moe/base/check.h"
#include "moe/files/pretokenizer.h"

namespace moe {
namespace {

using Pair = std::pair<int32_t, int32_t>;

struct PairHash {
  size_t operator()(Pair p) const {
    const uint64_t key = (static_cast<uint64_t>(static_cast<uint32_t>(p.first)) << 32 | static_cast<uint32_t>(p.second));
    return static_cast<size_t>((key ^ key >> 29) * 0x9e3779b97f4a7c15u >> 7);
  }
};

struct Occurrences {
  int64_t count = 0;               // weighted by the pieces' counts
  std::vector<int32_t> positions;  // every symbol that is or was the left one; those that were are recognised when visited
};

// All pieces as doubly linked lists of symbols, and for every pair where it occurs. A merge costs time in its occurrences only.
class Trainer {
 public:
  explicit Trainer(std::span<const CountedPiece> pieces) {
    for (const CountedPiece& piece : pieces) {
      for (size_t i = 0; i < piece.bytes.size(); ++i) {
        const auto at = static_cast<int32_t>(symbols_.size());
        MOE_CHECK(at < std::numeric_limits<int32_t>::max(), "too many bytes in pieces");
        symbols_.push_back({.token = static_cast<uint8_t>(piece.bytes[i]),
                            .previous = i == 0 ? -1 : at - 1,
                            .next = i + 1 == piece.bytes.size() ? -1 : at + 1,
                            .weight = piece.count});
      }
    }
    for (int32_t at = 0; at < static_cast<int32_t>(symbols_.size()); ++at) Add(at);
    for (const auto& [pair, found] : pairs_) queue_.push({found.count, pair});
    for (int byte = 0; byte < 256; ++byte) bytes_.emplace_back(1, static_cast<char>(byte));
    known_.insert(bytes_.begin(), bytes_.end());
  }

  // The next merge; false when no pair is left.
  bool Merge(BpeMerge* merge) {
    while (!queue_.empty()) {
      const Candidate top = queue_.top();
      queue_.pop();
      const auto found = pairs_.find(top.pair);
      if (found == pairs_.end() || found->second.count < kMinPairCount) continue;
      if (found->second.count !=
          top.count) {  // it has lost some since: back into its place (gains are queued when they happen)
        if (found->second.count < top.count) queue_.push({found->second.count, top.pair});
        continue;
      }
      std::string joined = bytes_[top.pair.first] + bytes_[top.pair.second];
      if (!known_.insert(joined).second) continue;
      *merge = {top.pair.first, top.pair.second, static_cast<int32_t>(bytes_.size())};
      bytes_.push_back(std::move(joined));
      Replace(*merge);
      return true;
    }
    return false;
  }

 private:
  struct Symbol {
    int32_t token;  // -1: merged into the one before
    int32_t previous, next;
    int64_t weight;  // how often its piece occurs
  };
  struct Candidate {
    int64_t count;
    Pair pair;
    bool operator<(const Candidate& other) const {  // the top of the queue: highest count, then lowest pair
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };

  // The pair that starts at a symbol comes into being or ends.
  void Add(int32_t at) {
    const Symbol& s = symbols_[at];
    if (s.next < 0) return;
    Occurrences& pair = pairs_[{s.token, symbols_[s.next].token}];
    pair.count += s.weight;
    pair.positions.push_back(at);
  }
  void Remove(int32_t at) {
    const Symbol& s = symbols_[at];
    if (const auto found = pairs_.find({s.token, symbols_[s.next].token}); found != pairs_.end())
      found->second.count -= s.weight;
  }

  void Replace(const BpeMerge& merge) {
    auto node = pairs_.extract({merge.left, merge.right});
    std::vector<int32_t>& positions = node.mapped().positions;
    std::ranges::sort(positions);  // left to right: of "aaa" the first two merge
    std::vector<Pair> grown;
    for (const int32_t at : positions) {
      Symbol& left = symbols_[at];
      if (left.token != merge.left || left.next < 0 || symbols_[left.next].token != merge.right) continue;
      Symbol& right = symbols_[left.next];
      if (left.previous >= 0) Remove(left.previous);
      if (right.next >= 0) Remove(left.next);
      left.token = merge.result;
      left.next = right.next;
      right.token = -1;
      if (left.next >= 0) {
        symbols_[left.next].previous = at;
        Add(at);
        grown.emplace_back(merge.result, symbols_[left.next].token);
      }
      if (left.previous >= 0) {
        Add(left.previous);
        grown.emplace_back(symbols_[left.previous].token, merge.result);
      }
    }
    std::ranges::sort(grown);
    grown.erase(std::unique(grown.begin(), grown.end()), grown.end());
    for (const Pair& pair : grown) queue_.push({pairs_[pair].count, pair});
  }

  std::vector<Symbol> symbols_;
  std::unordered_map<Pair, Occurrences, PairHash> pairs_;
  std::priority_queue<Candidate> queue_;  // every pair with its count, or a higher one that it had
  std::vector<std::string> bytes_;        // of every token
  std::unordered_set<std::string> known_;
};

}  // namespace

std::vector<BpeMerge> TrainMerges(std::span<const CountedPiece> pieces, int32_t num_merges) {
  Trainer trainer(pieces);
  std::vector<BpeMerge> merges;
  BpeMerge merge;
  while (static_cast<int32_t>(merges.size()) < num_merges && trainer.Merge(&merge)) merges.push_back(merge);
  return merges;
}

Result<Tokenizer> TrainBpe(std::span<const std::string> texts, int32_t vocab_size) {
  if (vocab_size < 256 + kNumSpecials || vocab_size > kMaxVocab)
    return Err("vocab_size", "got {}, expected {} (bytes and specials) to {}", vocab_size, 256 + kNumSpecials, kMaxVocab);
  const std::string pattern(kGpt2Pattern);
  MOE_TRY(const Pretokenizer pretokenizer, Pretokenizer::Create(std::span(&pattern, 1), "GPT-2 pattern"));
  std::unordered_map<std::string_view, size_t> index;
  std::vector<CountedPiece> pieces;  // in order of first appearance
  for (const std::string& text : texts) {
    pretokenizer.Split(text, [&](std::string_view piece) {
      const auto [found, is_new] = index.emplace(piece, pieces.size());
      if (is_new) pieces.push_back({piece, 0});
      ++pieces[found->second].count;
    });
  }
  int64_t num_bytes = 0;
  for (const CountedPiece& piece : pieces) num_bytes += static_cast<int64_t>(piece.bytes.size());
  if (num_bytes >= std::numeric_limits<int32_t>::max())
    return Err("vocab_size", "got {} bytes in different pieces of text, expected less than 2^31: train on a part", num_bytes);
  return Tokenizer::FromMerges(TrainMerges(pieces, vocab_size - 256 - kNumSpecials));
}

}  // namespace moe
