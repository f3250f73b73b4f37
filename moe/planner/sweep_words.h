#pragma once
// What the text of a sweep and its page say in the same words.

#include <string>
#include <string_view>

#include "moe/planner/sweep.h"

namespace moe {

inline constexpr double kQuietCores = 0.02;  // waiting for cores that a machine of our own makes us do
inline constexpr std::string_view kStoppedEarly = "Stopped before the end: larger batches are missing.";

// Bytes/s of the read probe over all rows; zeros without any.
struct ReadRange {
  double min = 0, max = 0;
};
ReadRange ReadsOf(const SweepReport& report);

// "EPYC, 2 threads, avx2"
std::string MeasuredOn(const SweepReport& report);
// "of 5 to 7 interleaved rounds per batch, 20 s in all"
std::string RoundsText(const SweepReport& report);
// "forced to experts, all alike" of tokens; empty where the model's own routers chose.
std::string ForcedText(const SweepRouting& routing);
// "Against the dense model of equal total size"
std::string AgainstTwin(std::string_view equal);

}  // namespace moe
