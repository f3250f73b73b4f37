#pragma once
// What a step does, op by op, counted from the model's shape: the walk of model_forward.cc and model_backward.cc on paper.

#include <cstdint>
#include <variant>
#include <vector>

#include "moe/costs/op_time.h"
#include "moe/model/config.h"
#include "moe/ops/step_clock.h"

namespace moe {

enum class Phase : uint8_t {
  kDecode,   // batch sequences, each with `context` past positions, add one
  kPrefill,  // batch tokens of prompts of `context` tokens each (the last may be shorter) enter an empty cache
  kTrain,    // batch tokens in sequences of `context`: forward, loss, backward, AdamW
};
inline constexpr int kNumPhases = 3;
std::string_view Name(Phase phase);  // "decode", "prefill", "train"

struct Step {
  Phase phase = Phase::kDecode;
  int64_t batch = 1;
  int64_t context = 64;

  int64_t sequences() const;          // that get logits when inferring
  int64_t rows_per_sequence() const;  // of the step; of the last rows_of_last(), where that is not 0
  int64_t full_sequences() const { return batch / rows_per_sequence(); }
  int64_t rows_of_last() const { return batch % rows_per_sequence(); }
};

// How many tokens come to the experts of one layer. One chance per expert to be among a token's choices, tokens independent;
// sums up to k.
struct ExpertChances {
  std::vector<double> p;  // [E]
};
// Uniform: k/E each. Zipf: p proportional to rank^-s, none above 1.
ExpertChances UniformChances(int64_t experts, int64_t top_k);
ExpertChances ZipfChances(int64_t experts, int64_t top_k, double s);

// Experts that have rows, by their number of rows: `tokens` draws of each expert's chance. Rows ascend; matrices sum up to
// DistinctExperts.
std::vector<RowsOfMatrices> RowsOfExperts(const ExpertChances& chances, double tokens);
double DistinctExperts(const ExpertChances& chances, double tokens);  // sum of 1 - (1 - p)^tokens

// Routing: see RoutingCost. Streaming: bytes through memory at the optimizer's pace, of matrices with wide rows or of others.
struct RoutingOp {
  bool backward = false;
  double tokens = 0, experts = 0, top_k = 0;
};
struct StreamOp {
  double bytes = 0;
  bool wide = false;
};

struct StepOp {
  StepPart part = StepPart::kOther;
  std::variant<ProductOp, RowWork, AttentionOp, RoutingOp, StreamOp> op;
  double bytes = 0, flop = 0;             // weights and cache moved once; multiply-adds of matrices and attention
  std::vector<RowsOfMatrices> rows = {};  // of a product
  bool uneven = false;                    // rows of experts: `rows` differ by chance
};

struct StepOps {
  std::vector<StepOp> ops;
  std::vector<double> distinct_experts;  // [L], 0 for dense layers
};

// chances [L], empty ones for dense layers. weight_bytes: per value of a matrix, where the weights are of a format that is only
// planned for (0.53125 of mxfp4); 0: as packed in `format`.
struct StepModel {
  const ModelConfig& config;
  DType format = DType::kBf16;
  std::vector<ExpertChances> chances = {};  // empty: uniform
  double weight_bytes = 0;
  // [L] experts that the step's tokens touch together, where tokens of one text choose alike and less than `chances` says is
  // touched; 0 of dense layers. Empty: as chances say.
  std::vector<double> distinct_experts = {};
  double kv_value_bytes = 4;  // of the cache that inferring reads and writes
};
StepOps OpsOf(const StepModel& model, const Step& step);

}  // namespace moe
