#pragma once
// What the runs of a comparison are asked when they are trained: their loss on the whole held-out text, and how long a step
// takes beside the base's. Not for others.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "moe/model/evaluate.h"
#include "moe/train/training_data.h"

namespace moe {

// An evaluation scores at most so many tokens, in windows spread over the text.
inline constexpr int64_t kHeldOutTokens = 262144;

// The text of all runs, by the tokenizer in `folder`.
Result<TrainingData> LoadComparedText(const Recipe& recipe, const std::string& where, const std::string& folder,
                                      ExecContext& ctx);

using StopRequested = std::function<bool()>;  // may be empty

// The model in `folder`. Nothing: stopped.
Result<std::optional<Evaluation>> ScoreHeldOut(const std::string& folder, const Recipe& recipe, const TrainingData& data,
                                               const StopRequested& stop, ExecContext& ctx);

// Seconds of a step, one pair for each round.
struct StepTimes {
  std::vector<double> base_s, own_s;
};
// Both go on from their last checkpoints, a few steps each, in turns: a machine whose speed changes then slows both alike. What
// they learn meanwhile is thrown away. Nothing: stopped.
Result<std::optional<StepTimes>> TimeInTurns(const std::string& base_folder, const std::string& folder,
                                             const TrainingData& data, const StopRequested& stop, ExecContext& ctx);

}  // namespace moe
