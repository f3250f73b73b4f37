#pragma once
// What a run tells about itself, step by step: for the person who watches, and one JSON object per step in metrics.jsonl.

#include <cstdint>
#include <string>
#include <vector>

#include "moe/base/result.h"
#include "moe/model/evaluate.h"

namespace moe {

// Seconds of one step, by part.
struct StepSeconds {
  double data = 0;       // making batches
  double model = 0;      // forward and backward
  double optimizer = 0;  // gradient norm, AdamW, packs

  double total() const { return data + model + optimizer; }
};

struct ValidationMetrics {
  double loss = 0;  // nats per token
  double bits_per_byte = 0;
  double seconds = 0;              // that the evaluation took
  bool is_best = false;            // so far
  std::vector<ExpertLoad> layers;  // [L]
};

struct StepMetrics {
  int64_t step = 0;    // steps done, 1 after the first
  int64_t steps = 0;   // of the whole run
  int64_t tokens = 0;  // targets trained on since the run began
  int64_t step_tokens = 0;
  double loss = 0;           // of the step's tokens, nats per token
  double bits_per_byte = 0;  // of the step's tokens
  double lr = 0;
  double grad_norm = 0;  // before clipping
  double seconds = 0;    // in steps since the run began; evaluations and checkpoints not counted
  StepSeconds parts;
  std::vector<LayerStats> layers;  // [L]

  double tokens_per_s() const { return static_cast<double>(step_tokens) / parts.total(); }
  // Over MoE layers; 0 without any. Losses are means, without their coefficients: a balance loss of 1 is perfect balance.
  double balance_loss() const;
  double z_loss() const;
  RouterLosses losses() const;
  double max_violation() const;             // of the worst layer
  double coefficient_of_variation() const;  // of the load of the layer where it is largest
  double drop_rate() const;                 // dropped slots / all slots
  double entropy() const;                   // of the routers, nats, mean over tokens, then layers
  double gate_mean() const;                 // over slots, then layers
  double largest_logit() const;             // of all layers, |z|
  int64_t dead_experts() const;             // of all layers together: those that no token of the step chose
};

// One line of metrics.jsonl, without the newline; the fields are listed in docs/cli.md.
std::string ToJsonLine(const StepMetrics& metrics);
// The same line with what an evaluation after that step found.
std::string WithValidation(const std::string& json_line, const ValidationMetrics& validation);

// metrics.jsonl, open for appending. Holds a lock for as long as it is open, so that a second process in the same folder is
// refused.
class MetricsFile {
 public:
  // Created where it is missing.
  static Result<MetricsFile> Open(const std::string& path);
  MetricsFile(MetricsFile&& other) noexcept;
  MetricsFile& operator=(MetricsFile&& other) noexcept;
  ~MetricsFile();

  // Keeps the whole lines among the first `keep_bytes` bytes, drops what follows: lines of steps that a resumed run does again.
  Status Truncate(int64_t keep_bytes);
  Status Append(const std::string& line);
  Status Sync();  // to the disk
  int64_t bytes() const { return bytes_; }

 private:
  MetricsFile(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

  std::string path_;
  int descriptor_ = -1;
  int64_t bytes_ = 0;
};

}  // namespace moe
