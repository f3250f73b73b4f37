#pragma once
// Where a step's time goes, told by the code that walks it.

#include <array>
#include <cstdint>
#include <string_view>

#include "moe/base/clock.h"

namespace moe {

enum class StepPart : uint8_t {
  kAttention,  // with its norm and projections
  kRouter,     // scores, choices, the plan of dispatch
  kExperts,    // or the dense FFN; its norm, combine
  kOptimizer,
  kOther,  // embedding, head, loss
};
inline constexpr int kNumStepParts = 5;

constexpr std::string_view Name(StepPart part) {
  constexpr std::string_view kNames[kNumStepParts] = {"attention", "router", "experts", "optimizer", "other"};
  return kNames[static_cast<size_t>(part)];
}

// Seconds of each part since Start. One part at a time.
struct StepClock {
  std::array<double, kNumStepParts> seconds{};
  StepPart part = StepPart::kOther;
  double since = 0;

  void Start() { seconds = {}, part = StepPart::kOther, since = NowSeconds(); }
  void Enter(StepPart next) {
    const double now = NowSeconds();
    seconds[static_cast<size_t>(part)] += now - since;
    part = next, since = now;
  }
};

}  // namespace moe
