#include "moe/files/bpe.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <queue>
#include <tuple>

#include "moe/base/check.h"

namespace moe {
namespace {

constexpr uint64_t kEmpty = ~uint64_t{0};
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();
constexpr size_t kShort = 32;  // tokens; up to here looking at all pairs each time is faster than a heap

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

size_t Hash(uint64_t key) {  // the finalizer of MurmurHash3
  key = (key ^ key >> 33) * 0xff51afd7ed558ccdu;
  key = (key ^ key >> 33) * 0xc4ceb9fe1a85ec53u;
  return static_cast<size_t>(key ^ key >> 33);
}

}  // namespace

BpeMerges::BpeMerges(std::span<const BpeMerge> merges) {
  slots_.assign(std::bit_ceil(2 * merges.size() + 2), Slot{kEmpty, 0, 0});
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const uint64_t key = PairKey(merges[rank].left, merges[rank].right);
    size_t at = Hash(key) & (slots_.size() - 1);
    for (; slots_[at].pair != kEmpty; at = (at + 1) & (slots_.size() - 1))
      MOE_CHECK(slots_[at].pair != key, "pair ({}, {})", merges[rank].left, merges[rank].right);
    slots_[at] = {key, static_cast<int32_t>(rank), merges[rank].result};
  }
}

const BpeMerges::Slot* BpeMerges::Find(int32_t left, int32_t right) const {
  const uint64_t key = PairKey(left, right);
  for (size_t at = Hash(key) & (slots_.size() - 1);; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].pair == key) return &slots_[at];
    if (slots_[at].pair == kEmpty) return nullptr;
  }
}

void BpeMerges::Apply(std::vector<int32_t>& ids, size_t begin) const {
  if (ids.size() - begin <= kShort)
    ApplyShort(ids, begin);
  else
    ApplyLong(ids, begin);
}

void BpeMerges::ApplyShort(std::vector<int32_t>& ids, size_t begin) const {
  int32_t* token = ids.data() + begin;
  size_t n = ids.size() - begin;
  int32_t rank[kShort], result[kShort];  // of the pair (i, i + 1)
  const auto look_up = [&](size_t i) {
    const Slot* slot = i + 1 < n ? Find(token[i], token[i + 1]) : nullptr;
    rank[i] = slot ? slot->rank : kNoRank;
    result[i] = slot ? slot->result : 0;
  };
  for (size_t i = 0; i < n; ++i) look_up(i);
  while (n > 1) {
    const auto best = static_cast<size_t>(std::min_element(rank, rank + n - 1) - rank);
    if (rank[best] == kNoRank) break;
    token[best] = result[best];
    --n;
    std::copy(token + best + 2, token + n + 1, token + best + 1);
    std::copy(rank + best + 2, rank + n + 1, rank + best + 1);
    std::copy(result + best + 2, result + n + 1, result + best + 1);
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
  ids.resize(begin + n);
}

void BpeMerges::ApplyLong(std::vector<int32_t>& ids, size_t begin) const {
  const size_t n = ids.size() - begin;
  MOE_CHECK(n <= static_cast<size_t>(std::numeric_limits<int32_t>::max()), "{} tokens", n);
  int32_t* token = ids.data() + begin;
  std::vector<int32_t> previous(n), next(n);
  for (size_t i = 0; i < n; ++i) {
    previous[i] = static_cast<int32_t>(i) - 1;
    next[i] = i + 1 < n ? static_cast<int32_t>(i) + 1 : -1;
  }
  // A candidate is stale once either of its tokens has changed; a token merged away is -1.
  using Candidate = std::tuple<int32_t, int32_t, int32_t, int32_t, int32_t>;  // rank, position, left, right, result
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](int32_t i) {
    if (i < 0 || next[i] < 0) return;
    if (const Slot* slot = Find(token[i], token[next[i]])) queue.emplace(slot->rank, i, token[i], token[next[i]], slot->result);
  };
  for (size_t i = 0; i + 1 < n; ++i) offer(static_cast<int32_t>(i));
  while (!queue.empty()) {
    const auto [rank, i, left, right, result] = queue.top();
    queue.pop();
    if (token[i] != left || next[i] < 0 || token[next[i]] != right) continue;
    const int32_t gone = next[i];
    token[i] = result;
    token[gone] = -1;
    next[i] = next[gone];
    if (next[i] >= 0) previous[next[i]] = i;
    offer(i);
    offer(previous[i]);
  }
  ids.erase(std::remove(ids.begin() + static_cast<ptrdiff_t>(begin), ids.end(), -1), ids.end());
}

}  // namespace moe
