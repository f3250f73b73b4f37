// Every way to memory is replaced by one that counts.
#include "tests/allocation/counting.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "moe/base/arena.h"
#include "moe/base/thread_pool.h"
#include "moe/tensor/tensor.h"

#if defined(__SANITIZE_ADDRESS__)
#define MOE_SANITIZED 1
#elif defined(__SANITIZE_THREAD__)
#define MOE_SANITIZED 1
#define MOE_HIDES_ALIGNED 1  // the thread sanitizer's hook does not hear of aligned_alloc
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MOE_SANITIZED 1
#elif __has_feature(thread_sanitizer)
#define MOE_SANITIZED 1
#define MOE_HIDES_ALIGNED 1
#endif
#endif

namespace {

std::atomic<int64_t> g_allocations{0};  // of all threads since the start of the program

void Count() {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

#ifdef MOE_SANITIZED  // a sanitizer has its own malloc, which tells who asks
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void*, size_t),
                                                         void (*free_hook)(const volatile void*));
namespace {
const bool g_hooked =
    __sanitizer_install_malloc_and_free_hooks([](const volatile void*, size_t) { Count(); }, [](const volatile void*) {}) > 0;
}  // namespace
#else
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* p, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) {
  Count();
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  Count();
  return __libc_calloc(count, size);
}
void* realloc(void* p, size_t size) {
  Count();
  return __libc_realloc(p, size);
}
void* memalign(size_t alignment, size_t size) {
  Count();
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  Count();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** p, size_t alignment, size_t size) {
  Count();
  *p = __libc_memalign(alignment, size);
  return *p == nullptr ? ENOMEM : 0;
}
}
#endif

namespace moe::test {

int64_t NumAllocations() {
  return g_allocations;
}

namespace {

// The compiler may leave out what nobody looks at.
void Look(const void* p) {
  __asm__ volatile("" : : "g"(p) : "memory");
}

TEST(Counting, SeesEveryWayToMemory) {
  EXPECT_EQ(AllocationsIn([] {}), 0);
  EXPECT_EQ(AllocationsIn([] { Look(std::make_unique<int>(1).get()); }), 1);
  EXPECT_EQ(AllocationsIn([] { Look(std::vector<float>(1000).data()); }), 1);
  EXPECT_EQ(AllocationsIn([] { Look(std::string(100, 'x').data()); }), 1);
#ifndef MOE_HIDES_ALIGNED
  EXPECT_EQ(AllocationsIn([] { Look(AllocateAligned(5000000).get()); }), 1);
#endif
  EXPECT_GE(AllocationsIn([] { Look(Tensor({3, 5}).data()); }), 1);
  EXPECT_EQ(AllocationsIn([] {
              const std::array<char, 64> large{};
              const std::function<int()> f = [large] { return large[0]; };
              Look(&f);
            }),
            1);
  ThreadPool pool(2);
  EXPECT_GE(AllocationsIn([&] { pool.ParallelFor(8, [](int64_t, int) { Look(std::vector<int>(10).data()); }); }), 8);
}

}  // namespace
}  // namespace moe::test
