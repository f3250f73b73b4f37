#pragma once
// How long a step takes on a machine, and what it waits for.

#include <array>

#include "moe/planner/step_ops.h"

namespace moe {

struct StepTime {
  double s = 0;                                // of the step
  std::array<double, kNumStepParts> part_s{};  // sums up to s with the next two
  double imbalance_s = 0;                      // because experts have more and less rows than their mean
  double sync_s = 0;                           // beginning and ending parallel work, and the step's fixed cost
  double memory_s = 0, compute_s = 0;          // by themselves, without overlap
  double bytes = 0, flop = 0;
  std::array<double, kNumStepParts> part_flop{};  // sums up to flop
  double distinct_experts = 0;                    // mean over MoE layers; 0 without any

  bool memory_bound() const { return memory_s > compute_s; }
};

StepTime Predict(const StepModel& model, const Step& step, const Conditions& now);

}  // namespace moe
