#include "moe/train/schedule.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

TEST(Schedule, WarmsUpThenFallsToTheLeast) {
  const Schedule s{.lr = 1, .min_lr = 0.1, .warmup_steps = 4, .steps = 24};
  EXPECT_DOUBLE_EQ(LearningRate(s, 0), 0.25);
  EXPECT_DOUBLE_EQ(LearningRate(s, 3), 1);
  EXPECT_DOUBLE_EQ(LearningRate(s, 4), 1);
  EXPECT_DOUBLE_EQ(LearningRate(s, 23), 0.1);
  EXPECT_NEAR(LearningRate(s, 4) + LearningRate(s, 23), LearningRate(s, 13) + LearningRate(s, 14),
              1e-12);  // odd around the middle
  for (int64_t step = 5; step < 24; ++step) EXPECT_LT(LearningRate(s, step), LearningRate(s, step - 1)) << step;
  EXPECT_DOUBLE_EQ(LearningRate(s, 100), 0.1);
}

TEST(Schedule, ShortRunsAreDefined) {
  EXPECT_DOUBLE_EQ(LearningRate({.lr = 1, .min_lr = 0, .warmup_steps = 0, .steps = 1}, 0), 1);
  EXPECT_DOUBLE_EQ(LearningRate({.lr = 1, .min_lr = 0, .warmup_steps = 1, .steps = 1}, 0), 1);
  const Schedule two{.lr = 1, .min_lr = 0.5, .warmup_steps = 0, .steps = 2};
  EXPECT_DOUBLE_EQ(LearningRate(two, 0), 1);
  EXPECT_DOUBLE_EQ(LearningRate(two, 1), 0.5);
}

TEST(Schedule, WarmupIsAShareBelowOne) {
  EXPECT_EQ(WarmupSteps(0.02, 1000), 20);
  EXPECT_EQ(WarmupSteps(50, 1000), 50);
  EXPECT_EQ(WarmupSteps(50, 10), 10);
  EXPECT_EQ(WarmupSteps(0, 10), 0);
  EXPECT_EQ(WarmupSteps(0.02, 10), 0);
}

}  // namespace
}  // namespace moe
