#include "moe/base/arena.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

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
  if (p == nullptr) throw std::bad_alloc();  // the world's fault; the program says so in one line
  if (alignment == kHugePage) madvise(p, size, MADV_HUGEPAGE);
  return AlignedBytes(static_cast<std::byte*>(p));
}

Arena::Arena(size_t first_block_bytes) {
  AddBlock(first_block_bytes);
}

Arena::~Arena() {
  Release(0, 0, 0);
}

void Arena::AddBlock(size_t size) {
  blocks_.push_back({AllocateAligned(size), size});
  ++num_allocations_;
  ASAN_POISON_MEMORY_REGION(blocks_.back().bytes.get(), size);
}

void* Arena::AllocBytes(size_t count, size_t element_bytes) {
  MOE_CHECK(count <= SIZE_MAX / 2 / element_bytes, "count {}", static_cast<int64_t>(count));
  const size_t size = RoundUp(count * element_bytes, kAlignment);
  while (used_ + size > blocks_[block_].size) {
    if (block_ + 1 == blocks_.size()) AddBlock(std::max(size, 2 * blocks_.back().size));
    ++block_;
    used_ = 0;
  }
  std::byte* p = blocks_[block_].bytes.get() + used_;
  used_ += size;
  total_ += size;
  peak_ = std::max(peak_, total_);
  ASAN_UNPOISON_MEMORY_REGION(p, count * element_bytes);
#ifndef NDEBUG
  std::memset(p, 0xff, count * element_bytes);  // a NaN in every float format: reading what nobody wrote shows
#endif
  return p;
}

void Arena::Release(size_t block, size_t used, size_t total) {
  for (size_t b = block; b <= block_; ++b) {  // under AddressSanitizer a use of what was given back is an error
    const size_t begin = b == block ? used : 0;
    ASAN_POISON_MEMORY_REGION(blocks_[b].bytes.get() + begin, blocks_[b].size - begin);
  }
  block_ = block, used_ = used, total_ = total;
}

void Arena::Reset() {
  Release(0, 0, 0);
  if (blocks_.size() == 1) return;
  blocks_.erase(blocks_.begin() + 1, blocks_.end());
  // The live bytes at their most: one block wastes no tails. And a quarter, which costs nothing until it is touched: loads of
  // experts differ from step to step, and each step above all before it would be another block.
  AddBlock(peak_ + peak_ / 4);
  blocks_.erase(blocks_.begin());  // only now: there is a block whatever throws
}

}  // namespace moe
