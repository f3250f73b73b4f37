#include "moe/base/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "moe/base/check.h"

namespace moe {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t RoundUp(size_t x, size_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

}  // namespace

AlignedBytes AllocateAligned(size_t size) {
  const size_t alignment = size >= kHugePage ? kHugePage : kAlignment;
  void* p = std::aligned_alloc(alignment, RoundUp(std::max<size_t>(size, 1), alignment));
  MOE_CHECK(p != nullptr, "out of memory: {} bytes", size);
  if (alignment == kHugePage) madvise(p, size, MADV_HUGEPAGE);
  return AlignedBytes(static_cast<std::byte*>(p));
}

Arena::Arena(size_t first_block_bytes) {
  blocks_.push_back({AllocateAligned(first_block_bytes), first_block_bytes});
  ++num_allocations_;
}

void* Arena::AllocBytes(size_t size) {
  size = RoundUp(size, kAlignment);
  while (used_ + size > blocks_[block_].size) {
    if (block_ + 1 == blocks_.size()) {
      const size_t bytes = std::max(size, 2 * blocks_.back().size);
      blocks_.push_back({AllocateAligned(bytes), bytes});
      ++num_allocations_;
    }
    total_ += blocks_[block_].size - used_;  // the unused tail counts: a merged block must hold it
    ++block_;
    used_ = 0;
  }
  std::byte* p = blocks_[block_].bytes.get() + used_;
  used_ += size;
  total_ += size;
  peak_ = std::max(peak_, total_);
#ifndef NDEBUG
  std::memset(p, 0xff, size);  // a NaN in every float format: reading what nobody wrote shows
#endif
  return p;
}

void Arena::Reset() {
  if (blocks_.size() > 1) {
    blocks_.clear();
    const size_t bytes = RoundUp(peak_, kAlignment);
    blocks_.push_back({AllocateAligned(bytes), bytes});
    ++num_allocations_;
  }
  block_ = used_ = total_ = 0;
}

}  // namespace moe
