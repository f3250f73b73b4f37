#pragma once
// What a step takes whatever its size: that of a model so small that it does next to nothing else.

#include <memory>

#include "moe/costs/machine.h"
#include "moe/ops/exec_context.h"
#include "moe/planner/placement.h"

namespace moe {

class StepCalibration {
 public:
  explicit StepCalibration(ExecContext& ctx);
  ~StepCalibration();

  // One sample of a decode step.
  void Round(double sample_s, const Placement& placement);
  // m.step_s: what the step took beyond what its ops take by everything else in m.
  void Fit(MachineProfile& m) const;

 private:
  struct TinyModel;
  std::unique_ptr<TinyModel> tiny_;
  PlacedSamples samples_;
  ExecContext& ctx_;
};

}  // namespace moe
