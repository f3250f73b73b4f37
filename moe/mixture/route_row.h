#pragma once
// One token's way through the router: scores, choice, gates. Not for others than Route.

#include <cstdint>
#include <span>

#include "moe/base/rng.h"
#include "moe/mixture/routing.h"
#include "moe/mixture/selection.h"

namespace moe {

// In whole units of kEntropyUnit.
double WholeUnits(double x);
// Gates that are a softmax over the chosen, which need not go through the scores of all.
bool IsSoftmaxOfChosen(const RouterConfig& config);

// Of one thread.
struct RowScratch {
  float *shifted, *values, *exps, *noisy;  // [E]
  int32_t* best;                           // [k+1]
  SelectionScratch selection;
};

// One token.
struct RouteRow {
  int64_t t;
  const float* z;   // [E] logits
  float* p;         // [E] out; may be z
  int32_t* chosen;  // [count] out
  float* gate;      // [count] out
  int64_t count;
  float* near;     // [count,E] of sparsemixer, out
  float* softmax;  // [E] out, or null
  // For the load loss, else null: the slopes [E], out; chances are added to load [E]; next_best, out.
  float* load_slope = nullptr;
  double* load = nullptr;
  int32_t* next_best = nullptr;
  float score_sum = 1;
  double log_sum_exp = 0;
  double entropy = 0;
};

// What holds for all tokens.
struct RowRouter {
  const RouterConfig& config;
  const RouteInput& input;
  std::span<const float> log_column;  // [E] of Sinkhorn; empty: not now
  const ExecContext& ctx;

  int64_t E() const { return config.num_experts; }
  bool hashes() const { return config.selection == RouterSelection::kHash; }
  bool noise(RouterNoise kind) const { return input.training && config.noise == kind; }
  bool gumbel() const { return noise(RouterNoise::kGumbel) || noise(RouterNoise::kGumbelLater); }
  // Does the order of logits say who is chosen? They tie less often than rounded scores.
  bool by_logits() const {
    return input.selection_bias.empty() && config.groups == 1 && log_column.empty() && !gumbel() && !hashes();
  }
  // Are the values that say it functions of the logits, else of the scores?
  bool from_logits() const { return config.score == RouterScore::kTopKSoftmax || !log_column.empty() || gumbel() || hashes(); }
  Rng NoiseOf(const RouteRow& row) const { return Rng(input.key, static_cast<uint64_t>(row.t)); }

  void ValuesFromLogits(const RouteRow& row, float* values) const;

  // By values, bias and groups still to come. Changes values.
  void Choose(float* values, const RouteRow& row, const RowScratch& scratch) const;

  // Gates from the chosen experts' raw scores, which gate holds.
  void FinishGates(RouteRow& row) const;

  // Of clean logits row.z and those with noise in scratch: what the load loss asks for.
  void Chances(const RouteRow& row, const RowScratch& scratch) const;

  // p = softmax(z), its log-sum-exp and entropy, and the choice, unless it was made.
  void Softmax(RouteRow& row, const RowScratch& scratch) const;

  void Elementwise(RouteRow& row, const RowScratch& scratch) const;

  void Run(RouteRow& row, const RowScratch& scratch) const;
};

}  // namespace moe
