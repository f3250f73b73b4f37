#pragma once
// From where on an op takes the other of two ways that give the same bits.

#include <cstdint>

namespace moe {

// The defaults did well on a few machines; a profile of this one knows better (planner/switches.h).
struct KernelSwitches {
  int64_t least_panels = 4;  // GroupedGemm interleaves the rows of an item of several tiles from so many panels on
  int64_t stream_bytes = 0;  // ... and writes outputs of more than this past the caches; 0: more than the threads' L2 hold
};

}  // namespace moe
