#pragma once
// Where a step's time goes, told by the code that walks it.

#include <array>
#include <cstdint>
#include <functional>
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
  // Called between parts when it was not for so long, and not counted: what to look at during a long step. May be empty.
  std::function<void()> watch;
  double watched = 0;
  static constexpr double kWatchSeconds = 0.02;

  void Start() { seconds = {}, part = StepPart::kOther, since = watched = NowSeconds(); }
  void Enter(StepPart next) {
    const double now = NowSeconds();
    seconds[static_cast<size_t>(part)] += now - since;
    part = next, since = now;
    if (!watch || now - watched < kWatchSeconds) return;
    watch();
    since = watched = NowSeconds();
  }
};

}  // namespace moe
