#include "moe/ops/loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/reference/rows.h"
#include "testing/test_context.h"

namespace moe::test {
namespace {

TEST(CrossEntropy, LossAndGradientMatchTheTwin) {
  const float scale = 0.125f;
  Rng rng(1);
  for (const int64_t V : {1, 2, 31, 64, 257}) {
    for (const int64_t T : {0, 1, 90}) {
      FencedMatrix logits(T, V);
      FillNormal(logits.view(), rng, 3);
      auto targets = RandomInts(T, V, rng);
      for (size_t i = 0; i < targets.size(); i += 4) targets[i] = i % 8 == 0 && V > 1 ? -1 : targets[i];
      std::vector<double> want, want_d, bounds, d_bounds;
      for (int64_t r = 0; r < T; ++r) {
        const int32_t target = targets[static_cast<size_t>(r)];
        Tape tape;
        const auto x = tape.Inputs(logits.view().row_span(r));
        const Var loss = target < 0 ? Var(0.0) : ReferenceCrossEntropy(x, target);
        const auto d = tape.Gradient(loss, x);
        want.push_back(loss.value);
        double range = 0;  // exp(x - max): the difference is rounded, and its error is multiplied by exp's argument
        for (int64_t c = 0; c < V; ++c) range = std::fmax(range, std::fabs(logits.view()(r, c)));
        const double e = (static_cast<double>(V) + 2 * range + 16) * kEpsF32;
        bounds.push_back(target < 0 ? 0 : e + 2 * kEpsF32 * std::fabs(loss.value));
        for (int64_t c = 0; c < V; ++c) {
          const double p = d[static_cast<size_t>(c)] + (c == target ? 1 : 0);
          want_d.push_back(scale * d[static_cast<size_t>(c)]);
          d_bounds.push_back(target < 0 ? 0 : scale * (p * e + kEpsF32 * std::fabs(d[static_cast<size_t>(c)])));
        }
      }
      std::vector<float> first;
      for (const int threads : {1, 2, 3, 4}) {
        SCOPED_TRACE(fmt::format("T {} V {} threads {}", T, V, threads));
        TestContext t(threads);
        std::vector<float> loss(static_cast<size_t>(T), NAN), loss_only(static_cast<size_t>(T), NAN);
        FencedMatrix kept = logits, d = logits;
        CrossEntropy(kept.view(), targets, 0, loss_only, t.ctx);
        ExpectSameBits(kept.dense(), logits.dense());  // no gradient wanted: the logits stay
        CrossEntropy(d.view(), targets, scale, loss, t.ctx);
        EXPECT_TRUE(d.Intact());
        ExpectSameBits(loss, loss_only);
        ExpectClose(loss, want, bounds);
        ExpectClose(d.dense(), want_d, d_bounds);
        if (threads == 1) first = d.dense();
        ExpectSameBits(d.dense(), first);
      }
    }
  }
}

TEST(CrossEntropy, LargeLogitsDoNotOverflowAndNansShow) {
  TestContext t;
  std::vector<float> x = {1e4f, -1e4f, 0, 5, 5, 5, NAN, 1, 2}, loss(3);
  CrossEntropy({x.data(), 3, 3}, std::vector<int32_t>{1, 0, 1}, 1, loss, t.ctx);
  EXPECT_EQ(loss[0], 2e4f);
  EXPECT_NEAR(loss[1], std::log(3.0), 4 * kEpsF32);
  EXPECT_TRUE(std::isnan(loss[2]));
  EXPECT_EQ(x[0], 1);
  EXPECT_EQ(x[1], -1);
  EXPECT_EQ(x[2], 0);
}

TEST(CrossEntropy, MisuseIsCaught) {
  const ThrowingChecks guard;
  TestContext t;
  FencedMatrix x(2, 3);
  std::vector<float> loss(2), short_loss(1);
  EXPECT_THROW(CrossEntropy(x.view(), std::vector<int32_t>{0, 3}, 1, loss, t.ctx), CheckError);
  EXPECT_THROW(CrossEntropy(x.view(), std::vector<int32_t>{0, -2}, 1, loss, t.ctx), CheckError);
  EXPECT_THROW(CrossEntropy(x.view(), std::vector<int32_t>{0}, 1, loss, t.ctx), CheckError);
  EXPECT_THROW(CrossEntropy(x.view(), std::vector<int32_t>{0, 1}, 1, short_loss, t.ctx), CheckError);
}

}  // namespace
}  // namespace moe::test
