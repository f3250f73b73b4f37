#pragma once
// All that a run needs to go on as if it had never stopped, in one file, DIR/train_state: masters, moments and the few numbers
// below. One file, so that one rename replaces it: killed at any instant, the folder holds a whole checkpoint. The one before
// stays as DIR/train_state.previous.
//
// The file is a safetensors file with checksums: tensors "master.<p>", "m.<p>" and "v.<p>" for every parameter <p>, float32;
// the numbers are metadata.

#include <limits>
#include <string>

#include "moe/base/result.h"
#include "moe/files/safetensors.h"
#include "moe/tensor/parameter_store.h"
#include "moe/train/optimizer.h"

namespace moe {

inline constexpr const char* kTrainStateName = "train_state";
inline constexpr const char* kPreviousTrainStateName = "train_state.previous";

struct TrainState {
  int64_t step = 0;    // optimizer steps done: with the recipe's seed, all that the data order and the random streams depend on
  double seconds = 0;  // spent in steps so far
  double best_loss = std::numeric_limits<double>::infinity();  // validation, nats per token
  double best_bits_per_byte = 0;
  int64_t best_step = 0;
  int64_t metrics_bytes = 0;  // of metrics.jsonl when this was written
  std::string pending_line;   // of metrics.jsonl, when the evaluation that belongs to it was interrupted; else empty
  std::string recipe;         // TOML
  std::string data_digest, tokenizer_digest;
  std::string weights_digest;            // of the model that it began with; empty: with none, or an older program's
  std::string validation_digest;         // of the text that best_* are of; empty: none yet, or an older program's
  std::vector<double> capacity_factors;  // [layers] -1: the recipe's; empty in older files: all are
  std::string kernels;                   // name of the KernelTable: sums differ in their last bits between tables
};

// Whether a run was begun there: either file exists.
bool HoldsTrainState(const std::string& folder);

// On error (full disk, no permission) what was there before still is, whole.
Status SaveTrainState(const std::string& folder, const TrainState& state, const ParameterStore& store,
                      const Optimizer& optimizer);

struct OpenedTrainState {
  Safetensors file;  // checksums verified
  TrainState state;
  std::string warning;  // one line when the last checkpoint is damaged and this is the one before; else empty
};

// The last checkpoint; where it is damaged, the one before, which then takes its place. Errors name file and tensor.
Result<OpenedTrainState> OpenTrainState(const std::string& folder);

// Masters, moments and steps_done. Errors: a tensor is missing, unknown, or of another shape than the model's. On error nothing
// has been changed. Repack afterwards.
Status ReadTrainState(const OpenedTrainState& opened, ParameterStore& store, Optimizer& optimizer);

}  // namespace moe
