#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace moe {

// Warm-up, then half a cosine down to min_lr at the last step. (Loshchilov & Hutter 2017, without restarts.)
struct Schedule {
  double lr = 0, min_lr = 0;
  int64_t warmup_steps = 0, steps = 0;
};

// A recipe's warm-up as steps: below 1 it is a share of all. At most all of them.
inline int64_t WarmupSteps(double warmup, int64_t steps) {
  const double count = warmup < 1 ? warmup * static_cast<double>(steps) : warmup;
  return std::min(steps, static_cast<int64_t>(std::llround(count)));
}

// Of the step with index `step`, 0 the first: a pure function, so a resumed run continues the curve.
inline double LearningRate(const Schedule& schedule, int64_t step) {
  const auto [lr, min_lr, warmup, steps] = schedule;
  if (step < warmup) return lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (steps - warmup <= 1) return lr;
  const double progress = std::min(1.0, static_cast<double>(step - warmup) / static_cast<double>(steps - 1 - warmup));
  return min_lr + (lr - min_lr) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
}

}  // namespace moe
