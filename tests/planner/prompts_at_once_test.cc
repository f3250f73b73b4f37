#include "moe/planner/prompts_at_once.h"

#include <gtest/gtest.h>

#include "moe/model/model.h"
#include "moe/planner/predict.h"
#include "tests/planner/step_fixture.h"

namespace moe::test {
namespace {

constexpr int64_t kPlenty = int64_t{1} << 40;

double TokensPerS(const StepShape& shape, int64_t batch, int64_t context, const MachineProfile& m) {
  const StepTime time = Predict({.config = shape.config, .format = shape.format},
                                {.phase = Phase::kDecode, .batch = batch, .context = context}, {m});
  return static_cast<double>(batch) / time.s;
}

TEST(PromptsAtOnce, AreAtTheKneeOfEveryShape) {
  const MachineProfile m = FakeCpu(2);
  int inside = 0;
  for (const StepShape& shape : StepShapes()) {
    SCOPED_TRACE(shape.name);
    const PromptsToRun prompts{.count = 5000, .positions = 100, .context = 80, .available_bytes = kPlenty};
    const PromptsAtOnce got = ChoosePromptsAtOnce(shape.config, shape.format, prompts, &m);
    ASSERT_GE(got.count, 1);
    ASSERT_LE(got.count, kMostPromptsAtOnce);
    for (int64_t b = got.count; b < kMostPromptsAtOnce; b *= 2) {
      EXPECT_LT(TokensPerS(shape, 2 * b, 80, m), 1.1 * TokensPerS(shape, b, 80, m)) << b;
    }
    if (got.count > 1) {
      EXPECT_GE(TokensPerS(shape, got.count, 80, m), 1.1 * TokensPerS(shape, got.count / 2, 80, m));
    }
    if (got.count == kMostPromptsAtOnce) continue;
    ++inside;
    EXPECT_NE(got.why.find(fmt::format("{} prompt", got.count)), std::string::npos) << got.why;
    EXPECT_NE(got.why.find(fmt::format("from {} to {} throughput would", got.count, 2 * got.count)), std::string::npos)
        << got.why;
    EXPECT_NE(got.why.find("2 threads"), std::string::npos) << got.why;
  }
  EXPECT_GT(inside, 3);
}

TEST(PromptsAtOnce, NoMoreThanThereAreOrThanFit) {
  const MachineProfile m = FakeCpu(2);
  const StepShape shape = StepShapes()[5];
  PromptsToRun prompts{.count = 5000, .positions = 4000, .context = 80, .available_bytes = kPlenty};
  const int64_t knee = ChoosePromptsAtOnce(shape.config, shape.format, prompts, &m).count;
  ASSERT_GT(knee, 3);
  prompts.count = 3;
  const PromptsAtOnce few = ChoosePromptsAtOnce(shape.config, shape.format, prompts, &m);
  EXPECT_EQ(few.count, 3);
  EXPECT_EQ(few.why, "3 prompts at once: all there are");
  prompts.count = 5000;
  const auto need = [&](int64_t n) {
    return InferenceMemory(shape.config, shape.format, std::max<int64_t>(512, n), n, prompts.positions).total();
  };
  for (const int64_t fit : {int64_t{1}, int64_t{2}, knee - 1}) {
    for (const int64_t more : {int64_t{0}, need(fit + 1) - need(fit) - 1}) {
      prompts.available_bytes = need(fit) + more;
      const PromptsAtOnce got = ChoosePromptsAtOnce(shape.config, shape.format, prompts, &m);
      EXPECT_EQ(got.count, fit);
      EXPECT_NE(got.why.find("do not fit"), std::string::npos) << got.why;
    }
  }
  prompts.available_bytes = 1;  // loading says what is missing
  EXPECT_EQ(ChoosePromptsAtOnce(shape.config, shape.format, prompts, &m).count, 1);
}

TEST(PromptsAtOnce, WithoutAProfileAsUsual) {
  const StepShape shape = StepShapes()[0];
  PromptsToRun prompts{.count = 100, .positions = 10, .context = 5, .available_bytes = kPlenty};
  const PromptsAtOnce got = ChoosePromptsAtOnce(shape.config, shape.format, prompts, nullptr);
  EXPECT_EQ(got.count, kUsualPromptsAtOnce);
  EXPECT_NE(got.why.find("moe probe"), std::string::npos) << got.why;
  prompts.count = 1;
  EXPECT_EQ(ChoosePromptsAtOnce(shape.config, shape.format, prompts, nullptr).why, "1 prompt at once: all there are");
}

}  // namespace
}  // namespace moe::test
