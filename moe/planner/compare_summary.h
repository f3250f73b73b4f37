#pragma once
// What is written down of a finished run of a comparison, beside its recipe.toml and metrics.jsonl. Not for others.

#include <string>

#include "moe/planner/compare_measure.h"

namespace moe {

inline constexpr const char* kSummaryName = "summary.json";

struct RunSummaryFile {
  int64_t seed = 0;
  std::string failed;  // why it ended early; empty: it did not
  std::string kernels, data_digest, held_out_digest;
  std::string weights_digest;  // of the model that it began with; empty: with none, or it failed
  int threads = 0;
  bool models_kept = false;
  int64_t parameters_total = 0, parameters_active = 0;
  Evaluation held_out;  // no tokens: there is none
  StepTimes times;      // empty: not measured
};

Status WriteRunSummary(const std::string& folder, const RunSummaryFile& summary);
Result<RunSummaryFile> ReadRunSummary(const std::string& folder);

// A run that is there already must be the one that is wanted.
Status CheckRunFolder(const std::string& folder, const Recipe& wanted);

}  // namespace moe
