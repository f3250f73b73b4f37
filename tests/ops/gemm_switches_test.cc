// Switches choose among ways that give the same bits.

#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <limits>

#include "tests/ops/gemm_cases.h"

namespace moe::test {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

struct Counts {
  KernelTable table;
  static inline const KernelTable* real;
  static inline std::atomic<int> interleaved, streamed;

  explicit Counts(const KernelTable& of) : table(of) {
    real = &of, interleaved = streamed = 0;
    table.interleave_tile = [](auto... args) { ++interleaved, real->interleave_tile(args...); };
    table.stream_fence = [] { ++streamed, real->stream_fence(); };
  }
};

// Sizes odd and whole, several tiles and panels; rows at cache lines, so that they can go past the caches.
TEST(GemmSwitches, NoSettingChangesABit) {
  for (const KernelTable* supported : SupportedKernelTables()) {
    Counts counts(*supported);
    for (const int threads : {1, 3}) {
      TestContext t(threads, &counts.table);
      Rng rng(31);
      for (const DType format : kFormats) {
        for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kAccumulate, Epilogue::kSwiglu}) {
          std::deque<Product> products;
          for (const GemmShape& shape : {GemmShape{61, 192, 33}, {40, 32, 64}, {3, 96, 7}, {130, 160, 20}, {0, 64, 9}}) {
            products.emplace_back(shape, Product::Options{.format = format, .epilogue = epilogue, .gather = shape.M > 50}, rng,
                                  t.ctx);
          }
          // Its own c at cache lines; of one row less than a panel's.
          const AlignedBytes storage = AllocateAligned(61 * 192 * 4);
          const auto run = [&](const KernelSwitches& switches) {
            t.ctx.switches = switches;
            std::vector<GemmProblem> problems;
            for (Product& p : products) p.Refill(), problems.push_back(p.problem());
            GemmProblem at_lines = problems[0];
            at_lines.epilogue = Epilogue::kStore;
            at_lines.pre_activation = {};
            at_lines.c = AnyMat(MatView<float>(reinterpret_cast<float*>(storage.get()), 61, 192));
            problems.push_back(at_lines);
            GroupedGemm(problems, t.ctx);
            std::vector<float> all(reinterpret_cast<float*>(storage.get()), reinterpret_cast<float*>(storage.get()) + 61 * 192);
            for (const Product& p : products) {
              const auto part = p.c.dense();
              all.insert(all.end(), part.begin(), part.end());
            }
            return all;
          };
          SCOPED_TRACE(
              fmt::format("{} threads {} {} epilogue {}", supported->name, threads, Name(format), static_cast<int>(epilogue)));
          counts.interleaved = counts.streamed = 0;
          const auto want = run({.least_panels = kNever, .stream_bytes = kNever});
          EXPECT_EQ(counts.interleaved, 0);
          EXPECT_EQ(counts.streamed, 0);
          ExpectSameBits(run({}), want);
          int before = -1;
          for (const int64_t least : {kNever, int64_t{5}, int64_t{2}, int64_t{1}}) {  // ever more
            counts.interleaved = 0;
            ExpectSameBits(run({.least_panels = least, .stream_bytes = kNever}), want);
            EXPECT_GE(counts.interleaved, before);
            before = counts.interleaved;
          }
          EXPECT_GT(before, 0);
          ExpectSameBits(run({.least_panels = 1, .stream_bytes = 1}), want);
          EXPECT_GT(counts.streamed, 0);
        }
      }
    }
  }
}

TEST(GemmSwitches, StreamBytesIsTheMostThatStaysInTheCaches) {
  Counts counts(*SupportedKernelTables()[0]);
  TestContext t(2, &counts.table);
  Rng rng(32);
  const int64_t M = 16, N = 64;
  Product p({M, N, 8}, {.gap = 0}, rng, t.ctx);
  const AlignedBytes storage = AllocateAligned(static_cast<size_t>(M * N * 4));
  GemmProblem problem = p.problem();
  problem.c = AnyMat(MatView<float>(reinterpret_cast<float*>(storage.get()), M, N));
  const auto streamed = [&](int64_t bytes) {
    counts.streamed = 0, t.ctx.switches.stream_bytes = bytes;
    Gemm(problem, t.ctx);
    return counts.streamed > 0;
  };
  EXPECT_FALSE(streamed(0));
  EXPECT_FALSE(streamed(M * N * 4));
  EXPECT_TRUE(streamed(M * N * 4 - 1));
}

}  // namespace
}  // namespace moe::test
