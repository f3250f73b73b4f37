#pragma once
// One of a sweep's models, and the step that it repeats.

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "moe/base/rng.h"
#include "moe/planner/sweep.h"
#include "moe/train/optimizer.h"

namespace moe {

// Who sits where in a step: batch rows in sequences as even as can be. Decode: one row each, at position context.
std::vector<RowInfo> RowsOfStep(const Step& step);

// [tokens * top_k] experts: of every token top_k different ones, each with its chance. (Systematic sampling in random order:
// Madow 1949.)
void DrawExperts(const ExpertChances& chances, int64_t tokens, int64_t top_k, Rng& rng, std::vector<int32_t>& out);

class SweepRunner {
 public:
  // `loaded`: the model of a subject whose weights are not random, else null. Weights of a subject that only infers live in
  // `weights`, which outlives this: see Prepare.
  SweepRunner(const SweepSubject& subject, const SweepOptions& options, const Model* loaded, size_t index);
  int64_t packed_bytes() const { return model_->PackedStorageBytes(); }
  void Prepare(std::span<std::byte> weights, ExecContext& ctx);

  // Steps of the batch at `index` of the options' for some milliseconds. Not measured: only what warms caches and tells how
  // long a step takes.
  Status Turn(size_t index, bool measured, KvCache& cache, ExecContext& ctx);
  // Called now and then during long steps; see StepClock.
  void Watch(std::function<void()> watch) { clock_.watch = std::move(watch); }
  bool Begun(size_t index) const { return tallies_[index].last_s > 0; }
  void ForgetTurn(size_t index) { tallies_[index].turns.pop_back(); }  // the last measured one
  // What the turns at that batch said, of which only some count.
  SweepCell Cell(size_t index, const std::vector<size_t>& used) const;

  // Of all steps so far: how often each expert was among a token's choices. [L], empty for dense layers.
  std::vector<ExpertChances> Chances() const;

 private:
  struct Timed {
    double step_s = 0;                           // median of the turn's steps
    std::array<double, kNumStepParts> part_s{};  // of all its steps, as the others
    double wait_s = 0, all_s = 0;
    int64_t steps = 0;
  };
  // One batch size, and what its measured steps did.
  struct Tally {
    moe::Step step;
    std::vector<RowInfo> rows;
    std::vector<int32_t> logit_rows, targets;
    double last_s = 0, last_wait_s = 0;
    int64_t steps = 0;                       // those forgotten, too: what was routed stays
    std::vector<double> distinct_sum;        // [L]
    std::vector<std::vector<uint8_t>> used;  // [L][E] whether a token came in any of them
    std::vector<Timed> turns;                // one a round
  };
  Status Step(Tally& tally, KvCache& cache, ExecContext& ctx);
  Status Run(const Tally& tally, KvCache& cache, ExecContext& ctx);
  void Count(Tally& tally, Timed& turn);

  const SweepSubject& subject_;
  const SweepOptions& options_;
  const Model* model_ = nullptr;
  std::unique_ptr<Model> owned_;
  Optimizer optimizer_;  // training
  std::vector<OptimizedParameter> optimized_;
  Rng tokens_;
  std::vector<ExpertChances> forced_chances_;  // [L]; empty: routers choose
  std::vector<std::vector<int32_t>> forced_;   // [L] of the step
  std::vector<std::span<const int32_t>> forced_views_;

  StepStats stats_;
  StepClock clock_;
  std::vector<double> turn_s_;               // steps of the turn
  std::vector<Tally> tallies_;               // as options.batches
  std::vector<std::vector<double>> chosen_;  // [L][E] of all batches
  double tokens_seen_ = 0;
};

double MedianOf(std::vector<double> values);  // not empty

}  // namespace moe
