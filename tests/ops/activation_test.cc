// Rows, strides, threads and checks; the kernels have their own tests.
#include "moe/ops/activation.h"

#include <gtest/gtest.h>

#include "moe/ops/elementwise.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/test_context.h"

namespace moe::test {
namespace {

TEST(Activate, RowsAreTheKernelsForAnyNumberOfThreads) {
  Rng rng(1);
  for (const int64_t T : {0, 1, 700}) {
    for (const bool gated : {false, true}) {
      const int64_t F = 32, N = gated ? 2 * F : F;
      FencedMatrix x(T, N), d_h(T, F);
      FillNormal(x.view(), rng), FillNormal(d_h.view(), rng);
      for (int f = 0; f < kNumActivations; ++f) {
        for (const int threads : {1, 3}) {
          SCOPED_TRACE(fmt::format("T {} gated {} activation {} threads {}", T, gated, f, threads));
          TestContext t(threads);
          FencedMatrix h(T, F), d(T, N);
          Activate(static_cast<Activation>(f), gated, x.view(), h.view(), t.ctx);
          ActivateBackward(static_cast<Activation>(f), gated, x.view(), d_h.view(), d.view(), t.ctx);
          EXPECT_TRUE(h.Intact() && d.Intact());
          const ActivationKernels& kernels = t.ctx.kernels.activation[f];
          std::vector<float> row(static_cast<size_t>(F)), d_row(static_cast<size_t>(N));
          for (int64_t r = 0; r < T; ++r) {
            kernels.forward_f32(gated, x.view().row(r), F, row.data());
            kernels.backward_f32(gated, x.view().row(r), d_h.view().row(r), F, d_row.data());
            ExpectSameBits(h.view().row_span(r), row);
            if (!gated || f != static_cast<int>(Activation::kSilu)) ExpectSameBits(d.view().row_span(r), d_row);
          }
          if (!gated || f != static_cast<int>(Activation::kSilu)) continue;
          FencedMatrix swiglu(T, N);  // one way to differentiate SwiGLU
          SwigluBackward(x.view(), d_h.view(), swiglu.view(), t.ctx);
          ExpectSameBits(d.dense(), swiglu.dense());
        }
      }
    }
  }
}

TEST(Activate, MisuseIsCaught) {
  const ThrowingChecks guard;
  TestContext t;
  FencedMatrix wide(2, 32), narrow(2, 16), odd(2, 15), few(1, 16);
  EXPECT_NO_THROW(Activate(Activation::kGelu, true, wide.view(), narrow.view(), t.ctx));
  EXPECT_THROW(Activate(Activation::kGelu, false, wide.view(), narrow.view(), t.ctx), CheckError);
  EXPECT_THROW(Activate(Activation::kGelu, true, narrow.view(), narrow.view(), t.ctx), CheckError);
  EXPECT_THROW(Activate(Activation::kGelu, false, odd.view(), odd.view(), t.ctx), CheckError);
  EXPECT_THROW(Activate(Activation::kGelu, false, narrow.view(), few.view(), t.ctx), CheckError);
  EXPECT_THROW(ActivateBackward(Activation::kRelu2, false, narrow.view(), narrow.view(), wide.view(), t.ctx), CheckError);
  const AnyMat half = AllocMat(2, 16, DType::kBf16, t.ctx);
  EXPECT_THROW(Activate(Activation::kGelu, false, narrow.view(), half, t.ctx), CheckError);
}

}  // namespace
}  // namespace moe::test
