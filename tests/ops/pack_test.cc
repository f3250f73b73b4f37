#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "moe/ops/gemm.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/test_context.h"

namespace moe::test {
namespace {

TEST(Pack, BothSidesHoldTheMatrixAndItsTranspose) {
  TestContext t(2);
  Rng rng(11);
  for (const auto& [N, K] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {31, 7}, {32, 64}, {70, 33}, {65, 0}}) {
    FencedMatrix w(N, K);
    FillNormal(w.view(), rng);
    for (const DType format : {DType::kF32, DType::kBf16}) {
      for (const PackSide side : {PackSide::kForward, PackSide::kTransposed}) {
        SCOPED_TRACE(fmt::format("[{},{}] {} side {}", N, K, Name(format), static_cast<int>(side)));
        const bool forward = side == PackSide::kForward;
        const auto size = static_cast<size_t>(PackedBytes(format, N, K, side));
        const AlignedBytes bytes = AllocateAligned(size);
        const PackedWeight p = Pack(w.view(), format, side, {bytes.get(), size}, t.ctx);
        EXPECT_EQ(p.N, forward ? N : K);
        EXPECT_EQ(p.K, forward ? K : N);
        EXPECT_EQ(static_cast<int64_t>(size), p.bytes());
        for (int64_t n = 0; n < p.num_panels() * kPanel; ++n) {
          for (int64_t k = 0; k < (format == DType::kBf16 ? p.K + p.K % 2 : p.K); ++k) {
            const float want = n >= p.N || k >= p.K ? 0.0f : forward ? w.view()(n, k) : w.view()(k, n);
            const std::byte* panel = p.data + n / kPanel * p.panel_bytes();
            if (format == DType::kF32) {
              EXPECT_EQ(reinterpret_cast<const float*>(panel)[k * kPanel + n % kPanel], want);
            } else {
              EXPECT_EQ(reinterpret_cast<const Bf16*>(panel)[(k / 2 * kPanel + n % kPanel) * 2 + k % 2].bits,
                        ToBf16(want).bits);
            }
          }
        }
      }
    }
  }
}

TEST(Pack, MisuseIsCaught) {
  const ThrowingChecks guard;
  TestContext t;
  FencedMatrix w(3, 4);
  const AlignedBytes bytes = AllocateAligned(4096);
  EXPECT_THROW(Pack(w.view(), DType::kF32, PackSide::kForward, {bytes.get(), 16}, t.ctx), CheckError);
  EXPECT_THROW(Pack(w.view(), DType::kF16, PackSide::kForward, {bytes.get(), 512}, t.ctx), CheckError);
  const auto pack = [&](MatView<const float> m, size_t offset) {
    Pack(m, DType::kF32, PackSide::kForward, {bytes.get() + offset, 512}, t.ctx);
  };
  EXPECT_NO_THROW(pack(w.view(), 0));
  EXPECT_NO_THROW(pack(w.view(), kAlignment));
  EXPECT_THROW(pack(w.view(), 4), CheckError);
  EXPECT_THROW(pack(w.view(), kAlignment / 2), CheckError);
  MatView<const float> overlaps = w.view(), negative = w.view();
  overlaps.stride = 3, negative.rows = -1;
  EXPECT_THROW(pack(overlaps, 0), CheckError);
  EXPECT_THROW(Pack(negative, DType::kF32, PackSide::kForward, {bytes.get(), 0}, t.ctx), CheckError);
}

TEST(PackedWeight, PartsOutsideOfItAreCaught) {
  const ThrowingChecks guard;
  TestContext t;
  const FencedMatrix m(96, 8);
  const AlignedBytes bytes = AllocateAligned(96 * 8 * 4);
  const PackedWeight w = Pack(m.view(), DType::kF32, PackSide::kForward, {bytes.get(), 96 * 8 * 4}, t.ctx);
  EXPECT_EQ(w.Outputs(32, 64).data, w.panel(1));
  EXPECT_THROW(w.Outputs(-32, 32), CheckError);
  EXPECT_THROW(w.Outputs(16, 32), CheckError);
  EXPECT_THROW(w.Outputs(64, 33), CheckError);
  EXPECT_THROW(w.Outputs(32, -32), CheckError);
  EXPECT_EQ(w.Inputs(2, 6).panel(1), w.panel(1) + 2 * kPanel * 4);
  EXPECT_THROW(w.Inputs(-2, 4), CheckError);
  EXPECT_THROW(w.Inputs(1, 4), CheckError);
  EXPECT_THROW(w.Inputs(2, 3), CheckError);
  EXPECT_THROW(w.Inputs(4, 6), CheckError);
  EXPECT_THROW(w.Inputs(4, -2), CheckError);
}

}  // namespace
}  // namespace moe::test
