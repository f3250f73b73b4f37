#pragma once
// One batch through one MoE layer, written down step by step.

#include <cstdint>
#include <string>
#include <vector>

#include "moe/base/result.h"
#include "moe/ops/exec_context.h"

namespace moe {

struct TraceOptions {
  int64_t batch = 2, sequence = 5;
  int64_t hidden = 128;  // D
  int64_t experts = 4, top_k = 2;
  int64_t capacity = 6;        // rows per expert; 0: dropless
  double capacity_factor = 0;  // > 0: the capacity follows from it
  int64_t width = 256;         // F
  int64_t seed = 5;            // of input and weights; this one drops two slots
};

struct TraceStep {
  std::string name;                   // "bucket and pad"
  std::string operation;              // what is computed
  std::vector<int64_t> shape;         // of its result; of one expert's where per_expert
  bool per_expert = false;            // one such tensor for each
  std::vector<std::string> happened;  // lines
};

struct Trace {
  TraceOptions options;
  std::vector<TraceStep> steps;
  std::vector<int64_t> tokens_per_expert;   // assignments, before dropping
  std::vector<int64_t> rows_per_expert;     // after
  std::vector<int32_t> top_k_experts;       // [tokens,k]
  std::vector<float> gates;                 // [tokens,k]
  int64_t padded = 0, dropped = 0;          // empty bucket rows; slots
  int64_t capacity = 0;                     // rows of a bucket; the most loaded expert's when dropless
  double capacity_factor = 0;               // 0: dropless
  std::vector<std::string> capacity_lines;  // its formula with the numbers in it, then the textbook form
  double max_violation = 0, entropy = 0, balance_loss = 0;
};

// Runs the layer (moe_layer.h, padded executor, float32, random weights) and reports what it did. An error's `where` is the
// option's name: batch, sequence, top_k ...
Result<Trace> TraceLayer(const TraceOptions& options, ExecContext& ctx);

}  // namespace moe
