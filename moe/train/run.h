#pragma once
// A training run from recipe to finished model, in a folder of its own:
//   config.json model.safetensors tokenizer.json   the model, loadable; written with every checkpoint
//   best/                                          the same for the best evaluation so far
//   recipe.toml                                    what the run does, every key
//   train_state train_state.previous               checkpoints (checkpoint.h)
//   metrics.jsonl                                  one line per step (metrics.h)

#include <functional>
#include <string>

#include "moe/train/checkpoint.h"
#include "moe/train/recipe.h"
#include "moe/train/trainer.h"

namespace moe {

struct RunOptions {
  std::string recipe;  // a file; may be empty when resuming: the run's own
  RecipeOverrides overrides;
  std::string folder;
  bool resume = false;
};

// What is known before the first step.
struct RunInfo {
  ModelConfig model;
  TrainRecipe train;
  int64_t vocab_size = 0;
  int64_t train_bytes = 0, train_tokens = 0;
  int64_t validation_bytes = 0, validation_tokens = 0;  // what an evaluation scores
  int64_t steps_done = 0;                               // > 0: resumed
  std::string folder;
};

// Whoever watches. All may be empty.
struct RunObserver {
  std::function<void(const std::string& what)> on_note;  // one line: something began or happened
  std::function<void(const RunInfo&)> on_start;
  std::function<void(const StepMetrics&)> on_step;
  std::function<void(int64_t tokens_done, int64_t tokens_total)> on_evaluating;
  std::function<void(const StepMetrics&, const ValidationMetrics&)> on_validation;
  std::function<bool()> stop_requested;  // asked between steps, and within evaluations
};

struct RunSummary {
  bool interrupted = false;  // by stop_requested; a checkpoint has been written
  int64_t step = 0, steps = 0, tokens = 0;
  double seconds = 0;                             // in steps
  double loss = 0;                                // of the last step trained now; 0: none was
  double validation_loss = 0, bits_per_byte = 0;  // of the last evaluation now; 0: none was
  double best_loss = 0, best_bits_per_byte = 0;   // of all evaluations; 0: none was
  int64_t best_step = 0;
};

// Trains until the recipe's last step, a stop, or an error. A resumed run must have the recipe, the training data and the
// kernel table it was begun with; threads, checkpoint and evaluation intervals and the validation text may be others. Where an
// error stops it, the last checkpoint stays whole and the message says of which step it is.
Result<RunSummary> RunTraining(const RunOptions& options, const RunObserver& observer, ExecContext& ctx);

}  // namespace moe
