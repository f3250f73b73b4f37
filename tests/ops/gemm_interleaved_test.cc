// Items of many rows, which are interleaved first: the twin's results, and the bits of every row by itself.

#include <gtest/gtest.h>

#include <atomic>

#include "moe/ops/chunks.h"
#include "tests/ops/gemm_cases.h"

namespace moe::test {
namespace {

// `table`, but counts the tiles that read interleaved rows. One at a time, as kernels know of no context.
class CountsOuterTiles {
 public:
  explicit CountsOuterTiles(const KernelTable& table) : table_(table) {
    count = 0, f32 = table.outer_f32, bf16 = table.outer_bf16;
    table_.outer_f32 = [](auto... args) { ++count, f32(args...); };
    table_.outer_bf16 = [](auto... args) { ++count, bf16(args...); };
  }
  const KernelTable* table() const { return &table_; }
  int64_t tiles() const { return count; }

 private:
  static inline std::atomic<int64_t> count;
  static inline decltype(KernelTable::outer_f32) f32;
  static inline decltype(KernelTable::outer_bf16) bf16;
  KernelTable table_;
};

// One thread: nobody halves the items, and all of them have rows enough and panels enough to be interleaved.
TEST(GroupedGemm, InterleavedItemsMatchTheTwin) {
  for (const KernelTable* supported : SupportedKernelTables()) {
    const CountsOuterTiles counts(*supported);
    TestContext t(1, counts.table());
    Rng rng(12);
    for (const GemmShape& shape : {GemmShape{40, 160, 64}, {300, 320, 31}}) {
      for (const DType format : kFormats) {
        for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kAccumulate, Epilogue::kSwiglu}) {
          const bool gather = epilogue == Epilogue::kAccumulate;
          SCOPED_TRACE(fmt::format("{} [{},{},{}] {} epilogue {}", supported->name, shape.M, shape.N, shape.K, Name(format),
                                   static_cast<int>(epilogue)));
          const int64_t before = counts.tiles();
          const bool keep_pre = epilogue == Epilogue::kSwiglu;
          Product p(shape, {.format = format, .epilogue = epilogue, .gather = gather, .keep_pre = keep_pre}, rng, t.ctx);
          Gemm(p.problem(), t.ctx);
          EXPECT_EQ(counts.tiles() - before, CeilDiv(shape.M, supported->max_rows) * p.packed.num_panels());
          p.Expect();
        }
      }
    }
  }
}

// A prompt of 256 rows is interleaved, a row by itself is not: the same bits.
TEST(GroupedGemm, InterleavedItemsGiveTheBitsOfEveryRowAlone) {
  for (const KernelTable* supported : SupportedKernelTables()) {
    const CountsOuterTiles counts(*supported);
    TestContext t(1, counts.table());
    Rng rng(13);
    for (const DType format : kFormats) {
      for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kAccumulate, Epilogue::kSwiglu}) {
        for (const int64_t N : {160, 150}) {
          if (epilogue == Epilogue::kSwiglu && N % kPanel != 0) continue;
          for (const bool gather : {false, true}) {
            SCOPED_TRACE(fmt::format("{} {} epilogue {} N {} gather {}", supported->name, Name(format),
                                     static_cast<int>(epilogue), N, gather));
            const bool keep_pre = epilogue == Epilogue::kSwiglu;
            Product p({256, N, 77}, {.format = format, .epilogue = epilogue, .gather = gather, .keep_pre = keep_pre}, rng,
                      t.ctx);
            const int64_t before = counts.tiles();
            Gemm(p.problem(), t.ctx);
            const int64_t after = counts.tiles();
            EXPECT_EQ(after - before, CeilDiv(p.M, supported->max_rows) * p.packed.num_panels());
            const auto want = p.c.dense(), want_pre = p.pre.dense();
            p.Refill();
            const GemmProblem whole = p.problem();
            for (int64_t row = 0; row < p.M; ++row) {
              GemmProblem alone = whole;
              if (gather) {
                alone.a_rows = whole.a_rows.subspan(static_cast<size_t>(row), 1);
              } else {
                alone.a = whole.a.Rows(row, 1);
              }
              alone.c = whole.c.Rows(row, 1);
              if (keep_pre) alone.pre_activation = whole.pre_activation.Rows(row, 1);
              Gemm(alone, t.ctx);
            }
            EXPECT_EQ(counts.tiles(), after);
            ExpectSameBits(p.c.dense(), want);
            ExpectSameBits(p.pre.dense(), want_pre);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace moe::test
