#pragma once
// What a shape will do on a machine, before anything runs: memory, time per step at every batch beside its dense twins, where
// the regimes of the valley lie, which batch to take.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moe/base/result.h"
#include "moe/costs/machine.h"
#include "moe/planner/measured_routing.h"
#include "moe/planner/predict.h"
#include "moe/planner/regimes.h"
#include "moe/planner/sweep.h"

namespace moe {

// What weights are stored as. Our own kernels multiply f32 and bf16; the others are planned for as bytes per value (a block's
// bytes with its scale over its values), multiplied at the rate of bf16.
struct WeightType {
  std::string_view name;  // "f32", "bf16", "q8_0", "q4_0", "mxfp4"
  DType format = DType::kBf16;
  double bytes = 2;  // per value
  bool ours = true;
};
std::span<const WeightType> WeightTypes();  // widest first

// Experts spread over ranks, each a machine like the one planned for with a batch of its own and a copy of everything else.
struct ExpertParallel {
  int64_t ranks = 1;
  double bytes_per_s = 0, latency_s = 0;  // of a rank's link
};

struct PlanOptions {
  Phase phase = Phase::kDecode;
  std::vector<int64_t> batches = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};  // ascending; of each rank
  int64_t context = 64;                                                                      // see Phase
  WeightType dtype;
  SweepRouting routing;                             // kModel: uniform
  std::shared_ptr<const MeasuredRouting> measured;  // of this model on a text; then `routing` says nothing
  std::optional<double> max_s;                      // of a step
  std::optional<double> memory_bytes;               // of a rank; without it the machine's, where that is known
  ExpertParallel parallel;
  std::string_view kv_type = "f32";  // of keys and values that are kept: ours are f32
  double kv_value_bytes = 4;         // in training nothing is kept
};

// Of one rank, in bytes. A step of `batch` takes weights + sequences * cache + activations + program.
struct PlanMemory {
  struct OfType {
    WeightType type;
    double weights = 0;  // packed ones, and embedding, norms and routers in float32
  };
  std::vector<OfType> types;      // as WeightTypes()
  double weights = 0;             // of the type that is planned for
  double cache_per_sequence = 0;  // keys and values of the context
  double training_state = 0;      // masters, gradients, two moments, both packs
  double program = 0;
};

struct PlanCell {
  StepTime time;  // s: with all_to_all_s
  double all_to_all_s = 0, all_to_all_bytes = 0;
  double tokens_per_s = 0;  // of all ranks
  // What takes most of the time by itself: "memory", "compute", "overhead" (parallel work begun and ended), "link".
  std::string_view bound() const;
};

// Experts of a rank that a step touches, mean over MoE layers, by what is assumed of tokens.
struct AssumedExperts {
  double uniform = 0;          // each chooses every expert alike
  double by_frequency = 0;     // each chooses an expert as often as the text does, whatever the others do
  std::optional<double> runs;  // as runs of the text; not in decode, where every token is of another sequence

  double touched() const { return runs.value_or(by_frequency); }
};

struct PlanRow {
  int64_t batch = 0;
  PlanCell model;
  std::optional<PlanCell> dense_total, dense_active;  // of a model with experts
  double memory_bytes = 0;
  Regime regime = Regime::kMemory;        // see docs/cli.md
  std::optional<AssumedExperts> assumed;  // of measured routing

  double speedup_total() const { return dense_total->time.s / model.time.s; }
  double speedup_active() const { return dense_active->time.s / model.time.s; }
};

struct Plan {
  std::string name;
  ModelConfig config;
  MachineProfile machine;
  PlanOptions options;
  ParameterCount parameters;
  PlanMemory memory;
  int64_t experts = 0, top_k = 0;  // of the layer with most experts for each chosen; 0 of a dense model
  double active_twin_weights = 0;  // bytes
  std::vector<PlanRow> rows;
  Boundaries boundaries;
  Plateau plateau;
  std::vector<double> crossover_total, crossover_active;
  std::optional<int64_t> knee;
  // The batch of most tokens per second that keeps to max_s and memory_limit(); without max_s and memory_bytes the knee, where
  // it fits. best: its row. Empty: no batch keeps to them, or there is no knee and all batches fit.
  std::optional<int64_t> best_batch;
  std::optional<PlanRow> best;
  // Where the first batch is too much for the machine: the widest type of weights with which it is not, else the smallest.
  // Nothing in training.
  struct OtherType {
    std::string_view type;
    double memory_bytes = 0;
    bool fits = false;
  };
  std::optional<OtherType> other_type;

  bool moe() const { return experts > 0; }
  std::optional<double> memory_limit() const;  // as options say, else the machine's
  bool fits(const PlanRow& row) const { return row.memory_bytes <= memory_limit().value_or(row.memory_bytes); }
  std::vector<int64_t> Batches() const;
  std::vector<double> SpeedupTotal() const;  // empty of a dense model
  std::vector<double> SpeedupActive() const;
};

// Wrong usage: a batch below 1, a context the model does not have, more ranks than experts.
Status CheckPlan(const ModelConfig& config, const PlanOptions& options);
// The errors of CheckPlan, and one with the smallest that fits when the memory allowed is too small for batch 1.
Result<Plan> MakePlan(const std::string& name, const ModelConfig& config, const MachineProfile& machine,
                      const PlanOptions& options);

}  // namespace moe
