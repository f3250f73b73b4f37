#pragma once
// What became of the runs of a comparison: read from their folders, put beside one another, told to people and to programs.

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "moe/planner/compare.h"
#include "moe/planner/html_page.h"

namespace moe {

// A step whose loss lies more than the margin above the median of those before it.
inline constexpr int64_t kSpikeWindow = 50;  // so many before it at most
inline constexpr int64_t kSpikeLeast = 20;   // and at least
inline constexpr double kSpikeMargin = 0.3;  // nats per token
struct LossSpikes {
  int64_t steps = 0;
  double worst = 0;  // the furthest above, nats; may be below the margin
};
LossSpikes FindSpikes(std::span<const double> losses);

// One evaluation on the way, and the training steps since the one before it.
struct ComparePoint {
  int64_t step = 0, tokens = 0;
  double bits_per_byte = 0;             // of the validation text
  double train_loss = 0;                // nats per token, mean over the steps
  double max_violation = 0;             // of a batch: mean over steps, and over layers with experts
  double drop_rate = 0;                 // of slots
  std::optional<double> largest_logit;  // of the steps, where metrics.jsonl has it
};

struct CompareResult {
  int64_t seed = 0;
  std::string folder;
  std::string failed;  // what went wrong, "step 120: the loss is not a number"; empty: nothing
  int64_t steps = 0;   // done
  std::vector<ComparePoint> curve;
  double bits_per_byte = 0;       // of the last model on the held-out text; what follows is absent where the run failed
  double best_bits_per_byte = 0;  // of the evaluations on the way
  double train_loss = 0;          // nats per token, mean over the last tenth of the steps
  double max_violation = 0;       // of the whole held-out text, mean over layers with experts; 0 without any
  double held_out_drop_rate = 0;  // mean over them too
  int64_t dead_experts = 0;       // on the held-out text, of all layers
  double drop_rate = 0;           // of slots, all of training
  std::optional<double> largest_logit;
  LossSpikes spikes;
  double step_s = 0;                // median over the run's steps
  std::vector<double> step_ratios;  // to the base's time, taken in turns, round by round; empty: not measured
  int64_t parameters_total = 0, parameters_active = 0;
  int64_t held_out_tokens = 0, held_out_bytes = 0;
};

struct CompareReport {
  ComparePlan plan;
  std::vector<std::vector<CompareResult>> runs;  // [variants] finished ones, by seed; of a variant that shares them, the same
  int64_t steps = 0, threads = 0;
  std::string kernels;
  bool complete() const;
};

// Errors: a finished run had other text or another instruction set than the first.
Result<CompareReport> CollectComparison(const ComparePlan& plan);

// Mean and sample standard deviation; 0 for a single value. Median; quartiles are of the sorted list, interpolated.
struct Spread {
  int64_t count = 0;
  double mean = 0, deviation = 0;
};
Spread SpreadOf(std::span<const double> values);
double Quantile(std::vector<double> values, double share);  // values not empty

// Of the runs that did not fail.
std::vector<double> ValuesOf(const CompareReport& report, size_t variant, double CompareResult::*member);
// bits_per_byte less that of plan.against with the same seed, where both are there.
std::vector<double> DifferencesOf(const CompareReport& report, size_t variant);
// Seconds of a step: the base's, times the ratio measured in turns; where none was, of its own runs. 0: no run.
double StepSecondsOf(const CompareReport& report, size_t variant);
// Median over the rounds; 0: not measured.
double StepRatioOf(const CompareReport& report, size_t variant);
// Mean over runs, evaluation by evaluation, where all runs have it.
std::vector<ComparePoint> MeanCurve(const CompareReport& report, size_t variant);
// The rows of a table: for each axis its variants, the base before them where it is not among them.
std::vector<std::pair<std::string, std::vector<size_t>>> RowsByAxis(const ComparePlan& plan);

HtmlTable CompareTable(const CompareReport& report);                 // results
HtmlTable VariantsTable(const CompareReport& report);                // what each variant changes, and its size
std::vector<std::string> CompareNotes(const CompareReport& report);  // how it was measured, sentence by sentence
std::string CompareText(const CompareReport& report);
std::string CompareMarkdown(const CompareReport& report);
nlohmann::json CompareJson(const CompareReport& report);  // as docs/cli.md describes
std::string CompareHtml(const CompareReport& report);

}  // namespace moe
