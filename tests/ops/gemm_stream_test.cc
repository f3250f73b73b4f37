#include <gtest/gtest.h>

#include <atomic>
#include <tuple>
#include <vector>

#include "moe/base/cpu_info.h"
#include "moe/ops/chunks.h"
#include "moe/ops/gemm.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "tests/ops/gemm_cases.h"

namespace moe::test {
namespace {

// A table that counts the tiles that go past the caches.
struct Counting {
  KernelTable table;
  static inline const KernelTable* real;
  static inline std::atomic<int> tiles, fences;

  explicit Counting(const KernelTable& of) : table(of) {
    real = &of, tiles = fences = 0;
    table.tile_f32 = [](auto... args) { Count(args...), real->tile_f32(args...); };
    table.outer_f32 = [](auto... args) { Count(args...), real->outer_f32(args...); };
    table.tile_bf16 = [](auto... args) { Count(args...), real->tile_bf16(args...); };
    table.outer_bf16 = [](auto... args) { Count(args...), real->outer_bf16(args...); };
    table.round_rows = [](auto... args) {
      CountIf(std::get<sizeof...(args) - 1>(std::tuple(args...))), real->round_rows(args...);
    };
    table.stream_fence = [] { ++fences, real->stream_fence(); };
  }
  template <class... Args>
  static void Count(Args... args) {
    CountIf(std::get<sizeof...(Args) - 1>(std::tuple(args...)).stream);
  }
  static void CountIf(bool stream) {
    if (stream) ++tiles;
  }
};

float At(const AnyMat& m, int64_t r, int64_t c) {
  const bool bf16 = m.dtype == DType::kBf16;
  return bf16 ? ToFloat(static_cast<const Bf16*>(m.data)[r * m.stride + c])
              : static_cast<const float*>(m.data)[r * m.stride + c];
}

// A list of products, one of them of no rows, whose results together are more than the caches of two threads keep: they go past
// them, and are the same; unless they cannot, as their rows do not begin at a cache line, or are added to.
class GemmStream : public testing::TestWithParam<DType> {};

TEST_P(GemmStream, WhatIsLargeGoesPastTheCachesAndIsTheSame) {
  const DType result = GetParam();
  const int64_t size = SizeOf(result);
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const DType format : kFormats) {
      Counting counting(*table);
      TestContext t(2, &counting.table);
      const int64_t N = 1024 + 7, K = 10;  // the last panel is not whole
      const int64_t M = 2 * std::max<int64_t>(GetCpuInfo().l2_bytes, int64_t{1} << 20) / (N * size) + 5;
      Rng rng(1);
      const auto x = NormalFloats(M * K, rng), w = NormalFloats(N * K, rng);
      const auto bytes = t.ctx.arena.Alloc<std::byte>(PackedBytes(format, N, K, PackSide::kForward));
      const PackedWeight weight = Pack({w.data(), N, K}, format, PackSide::kForward, bytes, t.ctx);
      const MatView<const float> a(x.data(), M, K);
      // Elements before c and after its rows: rows at cache lines; not at them; at them in float32 alone.
      for (const auto& [offset, gap] : std::vector<std::pair<int64_t, int64_t>>{{0, 25}, {1, 25}, {0, 9}}) {
        SCOPED_TRACE(fmt::format("{} {} offset {} gap {}", table->name, Name(format), offset, gap));
        const int64_t stride = N + gap;
        const bool at_lines = offset == 0 && stride * size % kAlignment == 0;
        const AlignedBytes storage = AllocateAligned(static_cast<size_t>((M * stride + 16) * size));
        const AnyMat c(storage.get() + offset * size, result, M, N, stride);
        const auto dense = [&] {
          std::vector<float> out;
          for (int64_t r = 0; r < M; ++r) {
            for (int64_t n = 0; n < N; ++n) out.push_back(At(c, r, n));
          }
          return out;
        };
        const auto part = [&](Epilogue epilogue, int64_t row, int64_t rows) {
          return GemmProblem{.a = a.Rows(row, rows), .weight = &weight, .epilogue = epilogue, .c = c.Rows(row, rows)};
        };
        const auto in_pieces = [&](Epilogue epilogue) {
          for (int64_t row = 0; row < M; row += 100) Gemm(part(epilogue, row, std::min<int64_t>(100, M - row)), t.ctx);
          return dense();
        };
        const auto at_once = [&](Epilogue epilogue) {
          const int64_t few = 3, half = M / 2;  // a tile by itself is read row by row
          const GemmProblem list[] = {part(epilogue, 0, few), part(epilogue, few, half - few), part(epilogue, half, 0),
                                      part(epilogue, half, M - half)};
          GroupedGemm(list, t.ctx);
          return dense();
        };
        counting.tiles = counting.fences = 0;
        const bool sums = result == DType::kF32;
        const auto want = in_pieces(Epilogue::kStore), want_sums = sums ? in_pieces(Epilogue::kAccumulate) : want;
        EXPECT_EQ(counting.tiles, 0);
        std::memset(storage.get(), 0xff, static_cast<size_t>((M * stride + 16) * size));  // NaNs
        ExpectSameBits(at_once(Epilogue::kStore), want);
        const int streamed = counting.tiles, fences = counting.fences;
        const int64_t whole_panels = N / kPanel, tiles = CeilDiv(M / 2, table->max_rows) + CeilDiv(M - M / 2, table->max_rows);
        EXPECT_EQ(streamed >= (tiles - 2) * whole_panels, at_lines) << streamed;
        EXPECT_EQ(fences > 2, at_lines) << fences;  // at least one of every problem with rows
        EXPECT_TRUE(at_lines || streamed + fences == 0);
        if (sums) ExpectSameBits(at_once(Epilogue::kAccumulate), want_sums);
        EXPECT_EQ(counting.tiles, streamed);  // what is added to is read first
        for (int64_t r = 0; r < M; ++r) {
          for (int64_t n = N; n < stride; ++n) ASSERT_TRUE(std::isnan(At(c, r, n))) << r << " " << n;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Results, GemmStream, testing::ValuesIn(kFormats),
                         [](const auto& dtype) { return std::string(Name(dtype.param)); });

}  // namespace
}  // namespace moe::test
