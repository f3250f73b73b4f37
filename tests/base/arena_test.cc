#include "moe/base/arena.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <cstdint>
#include <new>
#include <vector>

#include "testing/matchers.h"
#include "testing/shapes.h"

namespace moe {
namespace {

TEST(Arena, SpansAreAlignedDisjointAndWritable) {
  Arena arena(256);
  std::vector<std::span<int32_t>> spans;
  for (const int64_t n : test::kSizes) spans.push_back(arena.Alloc<int32_t>(n));
  for (size_t s = 0; s < spans.size(); ++s) {
    EXPECT_EQ(spans[s].size(), static_cast<size_t>(test::kSizes[s]));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(spans[s].data()) % kAlignment, 0u);
    for (auto& x : spans[s]) x = static_cast<int32_t>(s);
  }
  for (size_t s = 0; s < spans.size(); ++s) {
    for (const int32_t x : spans[s]) EXPECT_EQ(x, static_cast<int32_t>(s));
  }
}

TEST(Arena, AllocZeroIsZero) {
  Arena arena;
  for (float& x : arena.Alloc<float>(1000)) x = 7;
  arena.Reset();
  for (const float x : arena.AllocZero<float>(1000)) EXPECT_EQ(x, 0);
}

TEST(Arena, DebugBuildsPoisonWithNans) {
#ifdef NDEBUG
  GTEST_SKIP() << "release build";
#else
  Arena arena;
  for (const float x : arena.Alloc<float>(33)) EXPECT_TRUE(std::isnan(x));
  for (const double x : arena.Alloc<double>(33)) EXPECT_TRUE(std::isnan(x));
#endif
}

// A step: outer memory that stays, scopes that come and go, sizes from a few bytes to beyond a huge page.
int64_t Step(Arena& arena) {
  const auto kept = arena.Alloc<float>(1000);
  for (const int64_t n : {10, 100000, 3, 700000, 50}) {
    const Arena::Scope scope(arena);
    arena.Alloc<float>(n);
    arena.Alloc<double>(n);
  }
  const auto last = arena.Alloc<float>(17);
  return last.data() - kept.data();
}

TEST(Arena, AllocatesNothingAfterTheFirstStep) {
  Arena arena(64);
  Step(arena);
  arena.Reset();
  const int64_t after_first = arena.num_allocations(), peak = arena.peak_bytes();
  for (int step = 0; step < 5; ++step) {
    EXPECT_EQ(Step(arena), 1008);  // 1000 floats rounded up to 64 bytes: what the scopes took was given back
    arena.Reset();
  }
  EXPECT_EQ(arena.num_allocations(), after_first);
  EXPECT_EQ(arena.peak_bytes(), peak);
}

TEST(Arena, PeakCountsWhatIsInUseNotWhatBlocksWaste) {
  Arena arena(1024);
  arena.Alloc<std::byte>(640);
  arena.Alloc<std::byte>(6400);  // does not fit in the first block, whose tail stays unused
  EXPECT_EQ(arena.peak_bytes(), 7040);
  EXPECT_EQ(arena.num_allocations(), 2);
  arena.Reset();  // merges
  arena.Alloc<std::byte>(640);
  arena.Alloc<std::byte>(6400);
  EXPECT_EQ(arena.num_allocations(), 3);
  EXPECT_EQ(arena.peak_bytes(), 7040);
}

TEST(Arena, AStepALittleLargerFitsToo) {
  Arena arena(1024);
  arena.Alloc<std::byte>(640), arena.Alloc<std::byte>(6400);
  arena.Reset();
  for (const int64_t more : {0, 640, 1280, 1728}) {  // a quarter of 7040 is 1760
    arena.Alloc<std::byte>(640), arena.Alloc<std::byte>(6400 + more);
    arena.Reset();
    EXPECT_EQ(arena.num_allocations(), 3) << more;
  }
  arena.Alloc<std::byte>(640), arena.Alloc<std::byte>(6400 + 1792);
  EXPECT_EQ(arena.num_allocations(), 4);
}

TEST(Arena, ScopesGiveBackAcrossBlocks) {
  Arena arena(128);
  const auto first = arena.Alloc<char>(64);
  char* inside = nullptr;
  {
    const Arena::Scope scope(arena);
    inside = arena.Alloc<char>(64).data();
    arena.Alloc<char>(100000);
    {
      const Arena::Scope nested(arena);
      arena.Alloc<char>(1000000);
    }
  }
  EXPECT_EQ(arena.Alloc<char>(64).data(), inside);
  EXPECT_EQ(inside, first.data() + 64);
}

TEST(Arena, SurvivesThatItsMergedBlockIsNotToBeHad) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers end a program that gets no memory";
#else
  Arena arena;
  arena.Alloc<std::byte>(40 << 20);  // never touched
  arena.Alloc<std::byte>(90 << 20);
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &limit), 0);
  const rlimit no_more{1, limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_AS, &no_more), 0);
  EXPECT_THROW(arena.Reset(), std::bad_alloc);
  ASSERT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
  const std::vector<std::vector<std::byte>> others(64, std::vector<std::byte>(1000));  // get what is no longer the arena's
  const auto mine = arena.Alloc<std::byte>(60000);
  for (const auto& other : others) {
    EXPECT_TRUE(other.data() + other.size() <= mine.data() || other.data() >= mine.data() + mine.size());
  }
#endif
}

TEST(Arena, NothingStillHasAnAddress) {
  Arena arena(0);
  EXPECT_TRUE(arena.Alloc<float>(0).empty());
  EXPECT_NE(arena.Alloc<float>(1).data(), nullptr);
}

TEST(Arena, ANegativeCountIsACheck) {
  const test::ThrowingChecks guard;
  Arena arena;
  EXPECT_THROW(arena.Alloc<float>(-1), test::CheckError);
}

TEST(AllocateAligned, AlignsAndSurvivesAnySize) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{63}, size_t{4097}, (size_t{2} << 20) + 1}) {
    const AlignedBytes bytes = AllocateAligned(size);
    ASSERT_NE(bytes, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.get()) % (size >= (size_t{2} << 20) ? size_t{2} << 20 : kAlignment), 0u);
    if (size > 0) bytes[0] = bytes[size - 1] = std::byte{1};
  }
}

#ifdef __SANITIZE_ADDRESS__
TEST(ArenaDeathTest, UseAfterScopeIsFound) {
  Arena arena;
  std::span<float> gone;
  {
    const Arena::Scope scope(arena);
    gone = arena.Alloc<float>(4);
  }
  EXPECT_DEATH({ *static_cast<volatile float*>(gone.data()) = 1; }, "use-after-poison");
}
#endif

}  // namespace
}  // namespace moe
