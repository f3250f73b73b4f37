#pragma once
// Byte-pair encoding by merge rank (Sennrich et al. 2016; byte-level as in GPT-2).

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moe {

struct BpeMerge {
  int32_t left, right;  // two neighbouring tokens
  int32_t result;       // the token they become
};

// The merges in order of rank, as a table. Immutable, shared by threads.
class BpeMerges {
 public:
  BpeMerges() : BpeMerges(std::span<const BpeMerge>()) {}
  explicit BpeMerges(std::span<const BpeMerge> merges);  // no pair twice (checked)

  // Merges ids[begin..] in place: always the pair of lowest rank, the leftmost of equals, until no pair has a rank. O(n log n).
  void Apply(std::vector<int32_t>& ids, size_t begin) const;

 private:
  struct Slot {
    uint64_t pair;
    int32_t rank, result;
  };
  const Slot* Find(int32_t left, int32_t right) const;
  void ApplyShort(std::vector<int32_t>& ids, size_t begin) const;
  void ApplyLong(std::vector<int32_t>& ids, size_t begin) const;

  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
};

}  // namespace moe
