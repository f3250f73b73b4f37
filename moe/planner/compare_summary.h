#pragma once
// What is written down of a finished run of a comparison, beside its recipe.toml and metrics.jsonl. Not for others.

#include <map>
#include <string>
#include <utility>

#include "moe/planner/compare_measure.h"

namespace moe {

inline constexpr const char* kSummaryName = "summary.json";

struct RunSummaryFile {
  int64_t seed = 0;
  std::string failed;  // why it ended early; empty: it did not
  std::string kernels, data_digest, held_out_digest;
  std::string weights_digest;  // of the model that it began with; empty: with none
  int threads = 0;
  bool models_kept = false;
  int64_t parameters_total = 0, parameters_active = 0;
  Evaluation held_out;  // no tokens: there is none
  StepTimes times;      // empty: not measured
};

Status WriteRunSummary(const std::string& folder, const RunSummaryFile& summary);
Result<RunSummaryFile> ReadRunSummary(const std::string& folder);

// Runs that begin with the same folder begin with the same weights. [folder of the model]: a run that began with it, and the
// digest of what it found there.
using WeightsSeen = std::map<std::string, std::pair<std::string, std::string>>;
Status CheckWeights(const std::string& from, const std::string& digest, const std::string& run_folder, WeightsSeen& seen);

// A run that is there already must be the one that is wanted.
Status CheckRunFolder(const std::string& folder, const Recipe& wanted);

}  // namespace moe
