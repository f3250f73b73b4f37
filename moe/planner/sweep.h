#pragma once
// Measures one step at every batch size: a model beside the dense twins it would be compared with, models and batches
// interleaved, with probes of bandwidth and pace beside every round, so that drift of the machine hits all alike and is seen.

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "moe/model/model.h"
#include "moe/planner/placement.h"
#include "moe/planner/step_cost.h"
#include "moe/planner/step_ops.h"

namespace moe {

// Who says which experts tokens go to.
struct SweepRouting {
  enum Kind : uint8_t { kModel, kUniform, kZipf } kind = kModel;
  double s = 1;  // of kZipf: chances are proportional to rank^-s

  ExpertChances Chances(int64_t experts, int64_t top_k) const;  // not of kModel
};

struct SweepOptions {
  Phase phase = Phase::kDecode;
  std::vector<int64_t> batches = {1, 2, 4, 8, 16, 32, 64, 128, 256};  // ascending; see Phase
  int64_t context = 64;                                               // see Phase
  SweepRouting routing;
  DType format = DType::kBf16;  // of the weights
  std::vector<TwinKind> against = {TwinKind::kEqualActive, TwinKind::kEqualTotal};
  double seconds = 20;        // to spend on measuring; a slow cell takes its three rounds even so
  int64_t memory_bytes = -1;  // what the sweep may take; -1: what the machine has left
  double handover_s = 0;      // rounds wait until the cores lie like that, for `seconds` in all at most; 0: however they lie
  Placement::Source handover = HandoverSeconds;
  int64_t probe_bytes = -1;  // buffer of the bandwidth probe; -1: far larger than the last-level cache
  uint64_t seed = 1;
};

enum class SweepRole : uint8_t { kModel, kDenseActive, kDenseTotal };

// Where the model's own weights come from; twins always have random ones.
enum class SweepWeights : uint8_t { kRandom, kToLoad, kLoaded };

// One of the models that take turns.
struct SweepSubject {
  SweepRole role = SweepRole::kModel;
  ModelConfig config;
  ParameterCount parameters;
  int64_t weight_bytes = 0;  // packed, as products read them
  bool random_weights = true;
};

// The model itself, then the twins of options.against; alone when it has no experts.
std::vector<SweepSubject> SweepSubjects(const ModelConfig& config, SweepWeights weights, const SweepOptions& options);

// What one subject did at one batch size.
struct SweepCell {
  double s_per_step = 0;                       // median over the rounds used
  double s_min = 0, s_max = 0;                 // over all rounds
  double repeat_error = 0;                     // one half of the rounds over the other, minus 1, without its sign
  int64_t steps = 0;                           // measured, all rounds together
  std::array<double, kNumStepParts> part_s{};  // of the median step; waits of even more than one part are in them
  double wait_s = 0;                           // of it: threads waiting for others that had more to do
  std::vector<double> distinct_experts;        // [L] touched, mean over steps; 0 for dense layers
  std::vector<int64_t> experts_used;           // [L] touched in any step
  Cost cost;                                   // with those experts; see DecodeCost, and StepOp in other phases

  double mean_distinct_experts(const ModelConfig& config) const;  // over its MoE layers; 0 without any
};

struct SweepRow {
  int64_t batch = 0;
  std::vector<SweepCell> cells;  // as the subjects
  double read_bytes_per_s = 0;   // of the probe, over the rounds used
  double read_min = 0, read_max = 0;
  double weights_bytes_per_s = 0;  // of the probe of weights, as that: what predictions are scaled by
  double pace_flop_per_s = 0;      // of float32 multiply-adds beside it: the pace of the cores
  double handover_s = 0;           // of a value between threads: how the cores lay
  int64_t turns_again = 0;         // taken again, as the cores were moved meanwhile
  int64_t rounds = 0, rounds_used = 0;
};

struct SweepReport {
  Phase phase = Phase::kDecode;
  DType format = DType::kBf16;
  int64_t context = 0;
  SweepRouting routing;
  std::string cpu, isa;
  int threads = 0;
  int64_t cache_bytes = 0;  // last level
  double seconds = 0;       // all of it
  double core_wait = 0;     // share of the time that threads waited for a core that others had
  bool interrupted = false;
  std::vector<SweepSubject> subjects;
  std::vector<SweepRow> rows;
  std::vector<ExpertChances> chances;  // [L] of the model's experts: given, or how often they were chosen; empty: all dense

  const SweepSubject* Find(SweepRole role) const;
  // Time of the twin / time of the model; empty when the twin was not measured.
  std::optional<double> Speedup(const SweepRow& row, SweepRole twin) const;
};

// What a sweep takes, counted before anything is allocated. Models with random weights share one arena and all share one cache.
struct SweepMemory {
  int64_t weights = 0;      // loaded ones, and the largest of the random ones
  int64_t embeddings = 0;   // float32 embedding, norms and routers of every model
  int64_t kv_cache = 0;     // of the largest batch
  int64_t activations = 0;  // of the largest step
  int64_t probe_buffer = 0;
  int64_t total() const { return weights + embeddings + kv_cache + activations + probe_buffer; }
};
SweepMemory CountSweepMemory(const ModelConfig& config, SweepWeights weights, const SweepOptions& options);

// Usage errors: a batch below 1, a context that the model does not have. An error with the figures when memory is short;
// kLoaded: what the model holds already is no longer asked for.
Status CheckSweep(const ModelConfig& config, SweepWeights weights, const SweepOptions& options);

struct SweepProgress {
  int64_t batch = 0;
  double fraction = 0;  // of the sweep, by time
};

// `loaded` null: random weights. A dense config is measured alone. `on_progress` (may be empty) is called between steps; when
// it returns false, the sweep stops and keeps the rows that have had a round of all models. Every step draws new random tokens,
// so that the router sees a batch as varied as a server's; tests every error of CheckSweep first.
Result<SweepReport> MeasureSweep(const ModelConfig& config, const Model* loaded, const SweepOptions& options,
                                 const std::function<bool(const SweepProgress&)>& on_progress, ExecContext& ctx);

}  // namespace moe
