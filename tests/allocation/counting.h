#pragma once
// The promise of "no allocation in a step after warm-up", counted at malloc itself: operator new, the arena and the tensors all
// end there. In a binary of its own, because it replaces malloc for all of it.

#include <cstdint>

namespace moe::test {

int64_t NumAllocations();  // of all threads since the start of the program

template <class Fn>
int64_t AllocationsIn(Fn&& fn) {
  const int64_t before = NumAllocations();
  fn();
  return NumAllocations() - before;
}

}  // namespace moe::test
