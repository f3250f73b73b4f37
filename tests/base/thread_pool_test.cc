#include "moe/base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "testing/matchers.h"
#include "testing/shapes.h"

namespace moe {
namespace {

using test::CheckError;
using test::ThrowingChecks;

TEST(ThreadPool, CallsEveryIndexOnceWithAThreadOfItsOwn) {
  for (int threads = 1; threads <= 4; ++threads) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.num_threads(), threads);
    for (const int64_t n : test::kSizes) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(n)), inside(static_cast<size_t>(threads));
      std::atomic<bool> shared{false};
      pool.ParallelFor(n, [&](int64_t i, int thread) {
        ASSERT_TRUE(thread >= 0 && thread < threads) << thread;
        if (inside[static_cast<size_t>(thread)].fetch_add(1) != 0) shared = true;
        calls[static_cast<size_t>(i)]++;
        inside[static_cast<size_t>(thread)]--;
      });
      for (const auto& c : calls) EXPECT_EQ(c, 1) << "of " << n << " with " << threads << " threads";
      EXPECT_FALSE(shared) << "two indices ran under one thread number at once";
    }
  }
}

TEST(ThreadPool, ResultsDoNotDependOnTheNumberOfThreads) {
  const auto compute = [](int threads) {
    ThreadPool pool(threads);
    std::vector<float> out(1000);
    for (int round = 0; round < 5; ++round) {
      pool.ParallelFor(1000, [&](int64_t i, int) {
        float& x = out[static_cast<size_t>(i)];
        x = std::sin(x + 0.37f * static_cast<float>(i)) + 1.0f / 3.0f;
      });
    }
    return out;
  };
  const auto one = compute(1);
  for (int threads = 2; threads <= 4; ++threads) test::ExpectSameBits(compute(threads), one);
}

// What one region wrote the next one, and the caller, see: plain memory, no atomics (ThreadSanitizer watches).
TEST(ThreadPool, ManyTinyRegionsHandOnTheirMemory) {
  ThreadPool pool(3);
  std::vector<int64_t> a(8, 0), b(8, 0);
  for (int64_t round = 0; round < 3000; ++round) {
    pool.ParallelFor(8, [&](int64_t i, int) { b[static_cast<size_t>(i)] = a[static_cast<size_t>((i + 1) % 8)] + 1; });
    std::swap(a, b);
  }
  EXPECT_EQ(a, std::vector<int64_t>(8, 3000));
}

TEST(ThreadPool, WakesThreadsThatWentToSleep) {
  ThreadPool pool(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // well beyond the spinning
    std::atomic<int> sum{0};
    pool.ParallelFor(10, [&](int64_t i, int) { sum += static_cast<int>(i); });
    EXPECT_EQ(sum, 45);
  }
}

TEST(ThreadPool, CallerSleepsWhileAnotherThreadWorksOn) {
  ThreadPool pool(2);
  std::atomic<int> done{0};
  pool.ParallelFor(2, [&](int64_t, int) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    ++done;
  });
  EXPECT_EQ(done, 2);
}

TEST(ThreadPool, StopsWhileIdleAndRightAfterWork) {
  for (int round = 0; round < 50; ++round) {
    ThreadPool idle(3);
    ThreadPool used(3);
    std::atomic<int> calls{0};
    used.ParallelFor(5, [&](int64_t, int) { ++calls; });
    EXPECT_EQ(calls, 5);
  }
}

TEST(ThreadPool, ANestedCallIsACheckForAnyNumberOfThreads) {
  const ThrowingChecks guard;
  for (int threads = 1; threads <= 3; ++threads) {
    ThreadPool pool(threads);
    for (const int64_t n : {1, 2, 7}) {
      EXPECT_THROW(pool.ParallelFor(n, [&](int64_t, int) { pool.ParallelFor(2, [](int64_t, int) {}); }), CheckError);
      std::atomic<int> calls{0};
      pool.ParallelFor(n, [&](int64_t, int) { ++calls; });  // the pool still works
      EXPECT_EQ(calls, n);
    }
  }
}

TEST(ThreadPool, AnotherPoolMayBeUsedInside) {
  ThreadPool outer(2), inner(2);
  std::atomic<int> calls{0};
  outer.ParallelFor(1, [&](int64_t, int) { inner.ParallelFor(3, [&](int64_t, int) { ++calls; }); });
  EXPECT_EQ(calls, 3);
}

TEST(ThreadPool, TheFirstExceptionLeavesAndTheRestIsDropped) {
  for (int threads = 1; threads <= 4; ++threads) {
    ThreadPool pool(threads);
    std::atomic<int> calls{0};
    EXPECT_THROW(pool.ParallelFor(100000,
                                  [&](int64_t i, int) {
                                    ++calls;
                                    if (i >= 10) throw std::runtime_error("ten");
                                  }),
                 std::runtime_error);
    EXPECT_LE(calls, 10 + threads);
    calls = 0;
    pool.ParallelFor(100, [&](int64_t, int) { ++calls; });
    EXPECT_EQ(calls, 100);
  }
}

TEST(ThreadPool, NoThreadsIsACheck) {
  const ThrowingChecks guard;
  EXPECT_THROW(ThreadPool(0), CheckError);
}

TEST(ThreadPool, TwoPoolsWorkSideBySide) {
  std::vector<int64_t> sums(2, 0);
  std::vector<std::thread> callers;
  for (size_t c = 0; c < 2; ++c) {
    callers.emplace_back([&sums, c] {
      ThreadPool pool(2);
      std::vector<int64_t> squares(64);
      for (int round = 0; round < 100; ++round) {
        pool.ParallelFor(64, [&](int64_t i, int) { squares[static_cast<size_t>(i)] = i * i; });
        sums[c] += std::accumulate(squares.begin(), squares.end(), int64_t{0});
      }
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(sums[0], 85344 * 100);
  EXPECT_EQ(sums[1], 85344 * 100);
}

// What one thread had more to do than the caller, the caller waits.
TEST(ThreadPool, CountsWhatTheCallerWaits) {
  ThreadPool pool(2);
  const double before = pool.WaitSeconds();
  const auto run = [&](bool uneven) {
    std::atomic<int> begun = 0;
    pool.ParallelFor(2, [&](int64_t, int thread) {
      ++begun;
      while (begun < 2) std::this_thread::yield();  // one piece each
      if (uneven && thread != 0) std::this_thread::sleep_for(std::chrono::milliseconds(30));
    });
  };
  run(true);
  const double waited = pool.WaitSeconds() - before;
  EXPECT_GE(waited, 0.02);
  pool.ParallelFor(1, [](int64_t, int) {});  // nobody to wait for
  EXPECT_EQ(pool.WaitSeconds() - before, waited);
}

}  // namespace
}  // namespace moe
