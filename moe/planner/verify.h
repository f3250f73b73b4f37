#pragma once
// Predictions beside what a sweep measured: how far they are off, and which regimes they can be trusted to name.

#include <array>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "moe/planner/predict.h"
#include "moe/planner/regimes.h"
#include "moe/planner/sweep.h"

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

struct BoundaryCheck {
  std::string name;  // "speed-up over equal total falls below 1.25"
  double predicted = 0, measured = 0;
  double factor() const { return predicted > measured ? predicted / measured : measured / predicted; }
};

struct Verification {
  std::vector<std::vector<CellPrediction>> cells;  // [rows][subjects]
  std::vector<Regime> regimes;                     // [rows], of what is predicted; empty without the equal-total twin
  // [rows] Whether the model's and that twin's predictions are within stated_error there: else the regime is not named.
  std::vector<uint8_t> named;
  PredictionError adjacent, cached;
  double repeat_error = 0;                // of the sweep itself: mean over cells of SweepCell::repeat_error
  double stated_error = 0;                // max(10 %, twice repeat_error)
  std::vector<BoundaryCheck> boundaries;  // those that both curves have
};

Verification Verify(const SweepReport& report, const MachineProfile& machine);

// Adds to SweepJson's: "predicted" in every cell and "regime" in every row (null: not named), "mape", "mape_cached",
// "repeat_error", "stated_error", "boundaries".
void AddVerification(const SweepReport& report, const Verification& verification, nlohmann::json& sweep);

// A table of all cells and what it comes to.
std::string VerifyText(const SweepReport& report, const Verification& verification);

}  // namespace moe
