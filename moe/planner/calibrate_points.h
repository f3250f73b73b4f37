#pragma once
// Points of a calibration: things to run, measured in rounds.

#include <functional>
#include <memory>
#include <vector>

#include "moe/ops/exec_context.h"
#include "moe/planner/placement.h"

namespace moe {

// Something to run again and again; its seconds per run go to `use` when all rounds are done.
struct CalibrationPoint {
  std::function<void()> run;
  std::function<void(double seconds)> use;
  PlacedSamples samples = {};
};

using CalibrationPoints = std::vector<CalibrationPoint>;

// Each makes the operands of its points and keeps them alive in them. `machine` outlives the points; what they find goes into
// it.
struct MachineProfile;
CalibrationPoints ProductPoints(MachineProfile& machine, ExecContext& ctx);
CalibrationPoints RowOpPoints(MachineProfile& machine, ExecContext& ctx);
CalibrationPoints RoutingPoints(MachineProfile& machine, ExecContext& ctx);
CalibrationPoints AttentionPoints(MachineProfile& machine, ExecContext& ctx);
CalibrationPoints SwitchPoints(MachineProfile& machine, ExecContext& ctx);

}  // namespace moe
