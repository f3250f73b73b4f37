#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "moe/ops/gemm.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/reference/gemm.h"
#include "testing/reference/rows.h"
#include "testing/test_context.h"

namespace moe::test {
namespace {

struct Case {
  int64_t M, N, K;
};
// Few and many rows and panels, columns off the panel, a contraction of nothing.
const std::vector<Case> kCases = {{1, 32, 5}, {1, 70, 16}, {7, 64, 33}, {40, 70, 64}, {40, 256, 64}, {3, 64, 0}};

TEST(GemmBias, SumsStartFromIt) {
  for (const KernelTable* table : SupportedKernelTables()) {
    TestContext t(2, table);
    Rng rng(1);
    for (const Case& s : kCases) {
      for (const DType format : {DType::kF32, DType::kBf16}) {
        for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kSwiglu}) {
          const bool gated = epilogue == Epilogue::kSwiglu, bf16 = format == DType::kBf16;
          if (gated && s.N % kPanel != 0) continue;
          SCOPED_TRACE(fmt::format("{} [{},{},{}] {} gated {}", table->name, s.M, s.N, s.K, Name(format), gated));
          const std::vector<float> a = NormalFloats(s.M * s.K, rng), w = NormalFloats(s.N * s.K, rng),
                                   bias = NormalFloats(s.N, rng);
          const auto size = static_cast<size_t>(PackedBytes(format, s.N, s.K, PackSide::kForward));
          const AlignedBytes bytes = AllocateAligned(size);
          const PackedWeight packed =
              Pack(MatView<const float>(w.data(), s.N, s.K), format, PackSide::kForward, {bytes.get(), size}, t.ctx);
          const int64_t cols = gated ? s.N / 2 : s.N;
          std::vector<float> c(static_cast<size_t>(s.M * cols), NAN), pre(gated ? static_cast<size_t>(s.M * s.N) : 0, NAN);
          GemmProblem p{.a = MatView<const float>(a.data(), s.M, s.K), .weight = &packed, .bias = bias, .epilogue = epilogue};
          p.c = MatView<float>(c.data(), s.M, cols);
          if (gated) p.pre_activation = MatView<float>(pre.data(), s.M, s.N);
          Gemm(p, t.ctx);
          auto want = Multiply(
              s.M, s.N, s.K, [&](int64_t m, int64_t k) { return AsInput(a[static_cast<size_t>(m * s.K + k)], bf16); },
              [&](int64_t n, int64_t k) { return AsInput(w[static_cast<size_t>(n * s.K + k)], bf16); });
          std::vector<double> bounds;
          for (size_t i = 0; i < want.value.size(); ++i) {
            const float b = bias[i % static_cast<size_t>(s.N)];
            want.value[i] += b;
            bounds.push_back(DotTolerance(s.K + 2, want.sum_abs[i] + std::fabs(b)).absolute);
          }
          ExpectClose(gated ? pre : c, want.value, bounds);
          if (!gated) continue;
          // The activation of the product it kept, bit for bit what it is without a bias.
          std::vector<float> h(c.size());
          for (int64_t m = 0; m < s.M; ++m) table->swiglu(pre.data() + m * s.N, cols, h.data() + m * cols);
          ExpectSameBits(c, h);
        }
      }
    }
  }
}

TEST(GemmBias, MisuseIsCaught) {
  const ThrowingChecks guard;
  TestContext t;
  const std::vector<float> w(64 * 8, 1.0f), a(8, 1.0f), bias(64, 1.0f);
  std::vector<float> c(64);
  const auto size = static_cast<size_t>(PackedBytes(DType::kF32, 64, 8, PackSide::kForward));
  const AlignedBytes bytes = AllocateAligned(size);
  const PackedWeight packed =
      Pack(MatView<const float>(w.data(), 64, 8), DType::kF32, PackSide::kForward, {bytes.get(), size}, t.ctx);
  GemmProblem p{.a = MatView<const float>(a.data(), 1, 8), .weight = &packed, .bias = bias};
  p.c = MatView<float>(c.data(), 1, 64);
  EXPECT_NO_THROW(Gemm(p, t.ctx));
  EXPECT_EQ(c[0], 9.0f);
  p.epilogue = Epilogue::kAccumulate;
  EXPECT_THROW(Gemm(p, t.ctx), CheckError);
  p.epilogue = Epilogue::kStore, p.bias = p.bias.first(63);
  EXPECT_THROW(Gemm(p, t.ctx), CheckError);
}

}  // namespace
}  // namespace moe::test
