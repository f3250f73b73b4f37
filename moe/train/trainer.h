#pragma once
// One optimizer step after another; files, checkpoints and evaluations are run.h's business.

#include <vector>

#include "moe/model/model.h"
#include "moe/train/data.h"
#include "moe/train/metrics.h"
#include "moe/train/optimizer.h"
#include "moe/train/recipe.h"
#include "moe/train/schedule.h"

namespace moe {

// What is wrong with weights that no training can go on from: one is not finite, or a tensor has grown absurdly. Empty:
// nothing.
std::string RuinedWeights(const ParameterStore& store);

class Trainer {
 public:
  // `model` has been made for training, `corpus` holds tokens of its vocabulary; both outlive this. token_bytes [V]. The
  // recipe's steps are known.
  Trainer(const Recipe& recipe, const Corpus& corpus, std::vector<int32_t> token_bytes, Model& model);

  // Weights of the recipe's seed, moments 0, no step done.
  void Restart(ExecContext& ctx);
  // The next step: batch_tokens targets in micro-batches, mean gradient, clipping, AdamW with packs. Weights and moments are
  // then a function of recipe, corpus and kernel table alone: not of threads, nor of stops between steps. An error (loss,
  // gradient or router not finite) names the step, the place and what to try, and leaves weights and moments as they were.
  Status Step(StepMetrics& metrics, ExecContext& ctx);

  // The error of a run whose numbers have gone wrong in that step: `what`, and what to try.
  tl::unexpected<Error> Diverged(int64_t step, const std::string& what) const;

  int64_t steps_done() const { return optimizer_.steps_done; }
  void set_steps(int64_t steps);  // of the schedule, after calibration
  Model& model() { return model_; }
  Optimizer& optimizer() { return optimizer_; }
  double seconds = 0;  // in steps so far

 private:
  uint64_t KeyOf(int64_t micro_batch) const;  // of what is random in it: the same when the step is taken again
  Status Gradients(StepMetrics& metrics, ExecContext& ctx);
  tl::unexpected<Error> NotFinite(const std::string& what, double value) const;

  TrainRecipe recipe_;
  std::vector<int32_t> token_bytes_;
  Model& model_;
  std::vector<Model::PackOf> packs_;           // in the store's order
  std::vector<OptimizedParameter> optimized_;  // the same
  bool gradients_clear_ = false;
  Optimizer optimizer_;
  Schedule schedule_;
  DataStream stream_;
  Batch batch_;
  StepStats stats_;
};

}  // namespace moe
