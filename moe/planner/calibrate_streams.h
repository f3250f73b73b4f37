#pragma once
// What comes from memory while it is computed with: weights, gradients, keys and values, the optimizer's state. Memory of
// shared machines changes its pace, so that every sample has a probe of its own beside it.

#include <functional>
#include <memory>
#include <span>

#include "moe/costs/machine.h"
#include "moe/ops/exec_context.h"
#include "moe/planner/ceilings.h"
#include "moe/planner/placement.h"

namespace moe {

class StreamCalibration {
 public:
  // `buffer`: values of weights, far more than the caches hold. Gradients of 0 are added to them.
  StreamCalibration(std::span<std::byte> buffer, ExecContext& ctx);
  ~StreamCalibration();

  // Bytes/s of bf16 weights, each multiplied with one row, out of the first `bytes` of the buffer.
  double WeightsOfOneRow(int64_t bytes, double sample_s);
  // One sample of every point, but for those before which `here` says no.
  void Round(CeilingProbe& ceilings, double sample_s, const std::function<bool()>& here, const Placement& placement);
  // Bytes/s of Ceiling::kWeights beside each of them, in this placement.
  std::vector<double> MemorySamples(double handover_s) const { return memory_.Of(handover_s); }
  // From the samples of m.handover_s: m.streams, what m.attention says of memory, m.adamw_bytes_per_s. The bandwidth of
  // weights, products, attention in the caches and barrier_s are in m already.
  void Fit(MachineProfile& m) const;

 private:
  struct Points;
  PlacedSamples memory_;
  std::unique_ptr<Points> points_;
  ExecContext& ctx_;
};

}  // namespace moe
