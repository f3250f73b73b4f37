#pragma once
// Memory of one step: taken by moving a pointer, given back all at once. After the first step it has its size, and allocates
// again only when a step needs a quarter more.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

namespace moe {

inline constexpr size_t kAlignment = 64;  // bytes: one cache line, one AVX-512 register

struct FreeDeleter {
  void operator()(std::byte* p) const { std::free(p); }
};
using AlignedBytes = std::unique_ptr<std::byte[], FreeDeleter>;

// `size` bytes at kAlignment (at 2 MiB, with transparent huge pages asked for, when large). Contents undefined. Never null.
AlignedBytes AllocateAligned(size_t size);

class Arena {
 public:
  explicit Arena(size_t first_block_bytes = 1 << 16);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // `count` elements at kAlignment, contents undefined (NaN-poisoned in debug builds). Valid until Reset or the end of the
  // Scope they were taken in. count 0 gives an empty span.
  template <class T>
  std::span<T> Alloc(int64_t count) {
    static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);
    return {static_cast<T*>(AllocBytes(static_cast<size_t>(count), sizeof(T))), static_cast<size_t>(count)};
  }
  template <class T>
  std::span<T> AllocZero(int64_t count) {
    auto out = Alloc<T>(count);
    for (auto& x : out) x = T{};
    return out;
  }

  // Gives everything back; merges the blocks, so that the next step of about the same size needs one and allocates nothing.
  void Reset();

  int64_t peak_bytes() const { return static_cast<int64_t>(peak_); }  // most in use at once since the start
  int64_t num_allocations() const { return num_allocations_; }        // blocks asked of the system since the start

  // Gives back, at the end of a block, what was taken inside it.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), block_(arena.block_), used_(arena.used_), total_(arena.total_) {}
    ~Scope() { arena_.Release(block_, used_, total_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    size_t block_, used_, total_;
  };

 private:
  struct Block {
    AlignedBytes bytes;
    size_t size;
  };
  void AddBlock(size_t size);
  void* AllocBytes(size_t count, size_t element_bytes);
  void Release(size_t block, size_t used, size_t total);  // back to where it stood

  std::vector<Block> blocks_;
  size_t block_ = 0;  // the block in use
  size_t used_ = 0;   // bytes of it handed out
  size_t total_ = 0;  // bytes in use over all blocks
  size_t peak_ = 0;
  int64_t num_allocations_ = 0;
};

}  // namespace moe
