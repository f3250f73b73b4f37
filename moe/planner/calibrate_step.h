#pragma once
// What a step takes whatever its size: that of a model so small that it does next to nothing else.

#include <memory>
#include <vector>

#include "moe/costs/machine.h"
#include "moe/ops/exec_context.h"

namespace moe {

class StepCalibration {
 public:
  explicit StepCalibration(ExecContext& ctx);
  ~StepCalibration();

  // One sample of a decode step.
  void Round(double sample_s);
  // m.step_s: what the step took beyond what its ops take by everything else in m.
  void Fit(MachineProfile& m) const;

 private:
  struct TinyModel;
  std::unique_ptr<TinyModel> tiny_;
  std::vector<double> samples_;
  ExecContext& ctx_;
};

}  // namespace moe
