// Products that read and write bf16: the same bits as with float32 that was rounded before, or is rounded afterwards.

#include <gtest/gtest.h>

#include <vector>

#include "moe/ops/gemm.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/test_context.h"

namespace moe::test {
namespace {

// Rounded values, once as float32 and once as bf16 `offset` elements into its memory, with rows `stride` apart.
struct Both {
  std::vector<float> f32;
  std::vector<Bf16> memory;
  int64_t rows, cols, stride, offset;

  Both(int64_t r, int64_t c, int64_t gap, int64_t from, Rng& rng)
      : f32(NormalFloats(r * c, rng)), rows(r), cols(c), stride(c + gap), offset(from) {
    memory.assign(static_cast<size_t>(offset + rows * stride), Bf16{0x7fc0});  // NaN where nobody may look
    for (int64_t i = 0; i < rows * cols; ++i) {
      Bf16& x = memory[static_cast<size_t>(offset + i / cols * stride + i % cols)];
      x = ToBf16(f32[static_cast<size_t>(i)]);
      f32[static_cast<size_t>(i)] = ToFloat(x);
    }
  }
  MatView<const float> AsF32() const { return {f32.data(), rows, cols}; }
  MatView<const Bf16> AsBf16() const { return {memory.data() + offset, rows, cols, stride}; }
};

struct Shape {
  int64_t M, N, K, gap, offset;
};
// Few and many panels and rows; odd lengths, rows and beginnings that pairs cannot be read from; strides that collide.
const std::vector<Shape> kShapes = {{1, 64, 33, 0, 0},  {5, 40, 64, 0, 0},    {40, 256, 64, 1, 0},   {40, 256, 64, 2, 1},
                                    {40, 64, 66, 2, 0}, {300, 320, 31, 1, 0}, {30, 256, 48, 976, 0}, {0, 64, 16, 0, 0}};

TEST(GemmTypes, Bf16InputsGiveTheBitsOfRoundedFloats) {
  for (const KernelTable* table : SupportedKernelTables()) {
    TestContext t(2, table);
    Rng rng(1);
    for (const Shape& s : kShapes) {
      for (const bool gather : {false, true}) {
        SCOPED_TRACE(
            fmt::format("{} [{},{},{}] gap {} offset {} gather {}", table->name, s.M, s.N, s.K, s.gap, s.offset, gather));
        const Both a(gather ? s.M / 2 + 1 : s.M, s.K, s.gap, s.offset, rng);
        const std::vector<int32_t> rows = gather ? RandomInts(s.M, a.rows, rng) : std::vector<int32_t>();
        const std::vector<float> w = NormalFloats(s.N * s.K, rng);
        const auto size = static_cast<size_t>(PackedBytes(DType::kBf16, s.N, s.K, PackSide::kForward));
        const AlignedBytes bytes = AllocateAligned(size);
        const PackedWeight packed =
            Pack(MatView<const float>(w.data(), s.N, s.K), DType::kBf16, PackSide::kForward, {bytes.get(), size}, t.ctx);
        std::vector<float> want(static_cast<size_t>(s.M * s.N)), got(want.size());
        Gemm({.a = a.AsF32(), .a_rows = rows, .weight = &packed, .c = MatView<float>(want.data(), s.M, s.N)}, t.ctx);
        Gemm({.a = a.AsBf16(), .a_rows = rows, .weight = &packed, .c = MatView<float>(got.data(), s.M, s.N)}, t.ctx);
        ExpectSameBits(got, want);
      }
    }
  }
}

TEST(GemmTypes, Bf16OutputsAreRoundedOnce) {
  for (const KernelTable* table : SupportedKernelTables()) {
    TestContext t(2, table);
    Rng rng(2);
    for (const Shape& s : kShapes) {
      for (const DType format : {DType::kF32, DType::kBf16}) {
        for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kSwiglu}) {
          if (epilogue == Epilogue::kSwiglu && s.N % kPanel != 0) continue;
          SCOPED_TRACE(fmt::format("{} [{},{},{}] {} epilogue {}", table->name, s.M, s.N, s.K, Name(format),
                                   static_cast<int>(epilogue)));
          const std::vector<float> a = NormalFloats(s.M * s.K, rng), w = NormalFloats(s.N * s.K, rng);
          const auto size = static_cast<size_t>(PackedBytes(format, s.N, s.K, PackSide::kForward));
          const AlignedBytes bytes = AllocateAligned(size);
          const PackedWeight packed =
              Pack(MatView<const float>(w.data(), s.N, s.K), format, PackSide::kForward, {bytes.get(), size}, t.ctx);
          const int64_t cols = epilogue == Epilogue::kSwiglu ? s.N / 2 : s.N, stride = cols + s.gap;
          std::vector<float> f32(static_cast<size_t>(s.M * cols));
          std::vector<Bf16> bf16(static_cast<size_t>(s.M * stride), Bf16{0x1234});
          GemmProblem p{.a = MatView<const float>(a.data(), s.M, s.K), .weight = &packed, .epilogue = epilogue};
          p.c = MatView<float>(f32.data(), s.M, cols);
          Gemm(p, t.ctx);
          p.c = MatView<Bf16>(bf16.data(), s.M, cols, stride);
          Gemm(p, t.ctx);
          for (int64_t m = 0; m < s.M; ++m) {
            for (int64_t n = 0; n < stride; ++n) {
              const uint16_t want = n < cols ? ToBf16(f32[static_cast<size_t>(m * cols + n)]).bits : 0x1234;
              ASSERT_EQ(bf16[static_cast<size_t>(m * stride + n)].bits, want) << m << " " << n;
            }
          }
        }
      }
    }
  }
}

TEST(GemmTypes, WeightGradientsOfBf16AreThoseOfRoundedFloats) {
  for (const KernelTable* table : SupportedKernelTables()) {
    TestContext t(2, table);
    Rng rng(3);
    for (const Shape& s : kShapes) {
      for (const bool gather : {false, true}) {
        SCOPED_TRACE(
            fmt::format("{} [{},{},{}] gap {} offset {} gather {}", table->name, s.M, s.N, s.K, s.gap, s.offset, gather));
        const Both d_y(s.M, s.N, s.gap, s.offset, rng), x(gather ? s.M / 2 + 1 : s.M, s.K, s.gap, s.offset, rng);
        const std::vector<int32_t> rows = gather ? RandomInts(s.M, x.rows, rng) : std::vector<int32_t>();
        std::vector<float> want = NormalFloats(s.N * s.K, rng), got = want;
        WeightGradProblem p{.d_y = d_y.AsF32(), .x = x.AsF32(), .x_rows = rows, .format = DType::kBf16};
        p.d_w = MatView<float>(want.data(), s.N, s.K);
        GroupedWeightGrad({&p, 1}, t.ctx);
        p.d_y = d_y.AsBf16(), p.x = x.AsBf16(), p.d_w = MatView<float>(got.data(), s.N, s.K);
        GroupedWeightGrad({&p, 1}, t.ctx);
        ExpectSameBits(got, want);
      }
    }
  }
}

}  // namespace
}  // namespace moe::test
