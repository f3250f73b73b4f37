#pragma once
// Predictions beside what a sweep measured: how far they are off, and which regimes they can be trusted to name.

#include <array>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "moe/planner/predict.h"
#include "moe/planner/regimes.h"
#include "moe/planner/sweep.h"
#include "moe/planner/terminal_plot.h"

namespace moe {

// Of one cell, at the bandwidth and pace measured beside it, and at those that the profile says.
struct CellPrediction {
  StepTime adjacent, cached;
};

// Mean of |predicted / measured - 1| over cells; NaN of none.
struct PredictionError {
  double all = 0;
  std::array<double, 3> by_regime{};  // of Regime
};

// Where both curves pass a level, or only one of them does: the other one then may do so beyond the batches of the sweep, at
// `edge` at the nearest.
struct BoundaryCheck {
  std::string name;                           // "speed-up over equal total falls below 1.25"
  std::optional<double> predicted, measured;  // batch; one of them is there
  double edge = 0;
  // Where the measured one may lie: where the curve passes, all of it higher or lower by the sweep's own repeat error; an end
  // of the sweep where it then does not. Far apart where a flat curve grazes the level.
  double from = 0, to = 0;
  bool exact() const { return predicted && measured; }
  // Of the larger over the smaller; unless exact(), at least so much.
  double factor() const;
  // No measurement of this sweep's error can tell the predicted one from the measured one.
  bool within_repeats() const;
};

// At the largest batch: how many times as fast as the equal-total twin, and how many times fewer multiply-adds.
struct FlopGain {
  double speedup = 0, flop_ratio = 0;
  double share() const { return speedup / flop_ratio; }
};

struct Verification {
  std::vector<std::vector<CellPrediction>> cells;  // [rows][subjects]
  std::vector<Regime> regimes;                     // [rows], of what is predicted; empty without the equal-total twin
  // [rows] Whether the model's and that twin's predictions are within stated_error there: else the regime is not named.
  std::vector<uint8_t> named;
  PredictionError adjacent, cached;
  double repeat_error = 0;                // of the sweep itself: mean over cells of SweepCell::repeat_error
  double stated_error = 0;                // max(10 %, twice repeat_error)
  std::vector<BoundaryCheck> boundaries;  // those that one of the curves has
  Boundaries closed_forms;
  double profile_handover_s = 0;  // how the cores lay for it; 0: unknown
  Plateau predicted_plateau, measured_plateau;
  // Measured, of the whole step, and of its expert layers alone (with routers; of the twin its FFN). Empty without the twin.
  std::optional<FlopGain> whole, experts;
};

Verification Verify(const SweepReport& report, const MachineProfile& machine);

// Adds to SweepJson's: "predicted" in every cell and "regime" in every row (null: not named), "mape", "mape_cached",
// "repeat_error", "stated_error", "b_d", "b_m", "boundaries", "plateau_predicted", "gain_at_largest_batch".
void AddVerification(const SweepReport& report, const Verification& verification, nlohmann::json& sweep);

// Measured speed-ups over both twins, and the predicted one over the equal-total twin where `verification` is not null, over
// the batches; nothing without twins.
TerminalPlot ValleyOf(const SweepReport& report, const Verification* verification);

// Sentences: whether cores lay elsewhere than for the profile; with the equal-total twin what theory and both curves say of a
// plateau, and how much of the FLOP ratio is reached.
std::vector<std::string> Findings(const SweepReport& report, const Verification& verification);

// A table of all cells and what it comes to.
std::string VerifyText(const SweepReport& report, const Verification& verification);

}  // namespace moe
