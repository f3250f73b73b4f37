#include <gtest/gtest.h>

#include <vector>

#include "moe/base/cpu_info.h"
#include "moe/ops/gemm.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "tests/ops/gemm_cases.h"

namespace moe::test {
namespace {

int tiles_streamed, fences;

// A product of so many rows that its result is more than the caches of two threads keep goes past them, and is the same; unless
// it cannot, as its rows do not begin at a cache line.
TEST(GemmStream, WhatIsLargeGoesPastTheCachesAndIsTheSame) {
  static const KernelTable* real;
  for (const KernelTable* table : SupportedKernelTables()) {
    real = table;
    KernelTable counting = *table;
    counting.outer_f32 = [](int64_t rows, int64_t K, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                            float* c, int64_t ldc, bool accumulate, const TileHints& hints) {
      if (hints.stream) __atomic_fetch_add(&tiles_streamed, 1, __ATOMIC_RELAXED);
      real->outer_f32(rows, K, a, a_stride, b, b_stride, c, ldc, accumulate, hints);
    };
    counting.stream_fence = [] {
      __atomic_fetch_add(&fences, 1, __ATOMIC_RELAXED);
      real->stream_fence();
    };
    TestContext t(2, &counting);
    const int64_t N = 1024 + 7, K = 9;  // the last panel is not whole
    const int64_t M = 2 * std::max<int64_t>(GetCpuInfo().l2_bytes, int64_t{1} << 20) / (N * 4) + 5, stride = N + 9;
    Rng rng(1);
    const auto x = NormalFloats(M * K, rng), w = NormalFloats(N * K, rng);
    const auto bytes = t.ctx.arena.Alloc<std::byte>(PackedBytes(DType::kF32, N, K, PackSide::kForward));
    const PackedWeight weight = Pack({w.data(), N, K}, DType::kF32, PackSide::kForward, bytes, t.ctx);
    const MatView<const float> a(x.data(), M, K);
    const AlignedBytes storage = AllocateAligned(static_cast<size_t>((M * stride + 16) * 4));
    for (const int64_t offset : {0, 1}) {  // floats
      const MatView<float> c(reinterpret_cast<float*>(storage.get()) + offset, M, N, stride);
      const auto dense = [&] {
        std::vector<float> out;
        for (int64_t r = 0; r < M; ++r) out.insert(out.end(), c.row(r), c.row(r) + N);
        return out;
      };
      SCOPED_TRACE(fmt::format("{} offset {}", table->name, offset));
      const auto in_pieces = [&](Epilogue epilogue) {
        for (int64_t row = 0, rows; row < M; row += rows) {
          rows = std::min<int64_t>(100, M - row);
          Gemm({.a = a.Rows(row, rows), .weight = &weight, .epilogue = epilogue, .c = c.Rows(row, rows)}, t.ctx);
        }
        return dense();
      };
      const auto whole = [&](Epilogue epilogue) {
        Gemm({.a = a, .weight = &weight, .epilogue = epilogue, .c = c}, t.ctx);
        return dense();
      };
      tiles_streamed = fences = 0;
      const auto want = in_pieces(Epilogue::kStore), want_sums = in_pieces(Epilogue::kAccumulate);
      EXPECT_EQ(tiles_streamed, 0);
      std::fill_n(reinterpret_cast<float*>(storage.get()), M * stride + 16, NAN);
      ExpectSameBits(whole(Epilogue::kStore), want);
      const int streamed = tiles_streamed;
      EXPECT_EQ(streamed > 0, offset == 0);
      EXPECT_EQ(fences > 0, offset == 0);
      ExpectSameBits(whole(Epilogue::kAccumulate), want_sums);
      EXPECT_EQ(tiles_streamed, streamed);  // what is added to is read first
      for (int64_t r = 0; r < M; ++r) {
        for (int64_t n = N; n < stride; ++n) ASSERT_TRUE(std::isnan(c.row(r)[n])) << r << " " << n;
      }
    }
  }
}

}  // namespace
}  // namespace moe::test
