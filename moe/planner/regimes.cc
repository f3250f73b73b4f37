#include "moe/planner/regimes.h"

#include <algorithm>
#include <cmath>

#include "moe/base/check.h"
#include "moe/planner/bench_optimizer.h"
#include "moe/planner/step_cost.h"
#include "moe/planner/sweep_report.h"
#include "moe/tensor/packed_weight.h"

namespace moe {
namespace {

double D(int64_t n) {
  return static_cast<double>(n);
}

// Between batches a straight line in log B. x: log of a batch within the range.
double Between(std::span<const double> logs, std::span<const double> ratio, double x) {
  const auto after = std::upper_bound(logs.begin() + 1, logs.end() - 1, x);
  const auto i = static_cast<size_t>(after - logs.begin());
  return ratio[i - 1] + (ratio[i] - ratio[i - 1]) * (x - logs[i - 1]) / (logs[i] - logs[i - 1]);
}

// FLOP/s of a product of so many rows that all that is fixed is lost in it.
double LargeProducts(const MachineProfile& machine, DType format, ProductKind kind, int64_t inputs) {
  constexpr double kRows = 4096;
  return 2 * kRows * D(inputs) * D(kPanel) / machine.product(format, kind).PanelSeconds(kRows, D(inputs));
}

// Of the parabola through three points of ascending x, the middle one the least.
double Foot(const double (&x)[3], const double (&y)[3]) {
  const double left = (y[0] - y[1]) / (x[1] - x[0]), right = (y[2] - y[1]) / (x[2] - x[1]);
  if (left + right <= 0) return x[1];  // all three are the same
  return x[1] + (left * (x[2] - x[1]) - right * (x[1] - x[0])) / (2 * (left + right));
}

}  // namespace

std::string_view Name(Regime regime) {
  constexpr std::string_view kNames[] = {"memory", "middle", "compute"};
  return kNames[static_cast<size_t>(regime)];
}

Regime RegimeOf(double speedup_total, bool twin_memory_bound) {
  if (speedup_total <= kGain) return Regime::kMiddle;
  return twin_memory_bound ? Regime::kMemory : Regime::kCompute;
}

std::vector<Regime> RegimesOf(std::span<const double> speedup_total) {
  std::vector<Regime> out;
  const auto least = std::ranges::min_element(speedup_total) - speedup_total.begin();
  for (size_t i = 0; i < speedup_total.size(); ++i) {
    const Regime sloping = static_cast<ptrdiff_t>(i) <= least ? Regime::kMemory : Regime::kCompute;
    out.push_back(speedup_total[i] <= kGain ? Regime::kMiddle : sloping);
  }
  // A curve that only rises has no side left of its least: arithmetic binds from the first batch on.
  if (least == 0 && out.size() > 1 && out.front() == Regime::kMemory) out.front() = Regime::kCompute;
  return out;
}

std::vector<RegimeBand> BandsOf(std::span<const int64_t> batches, std::span<const double> speedup_total,
                                std::span<const std::string> names) {
  std::vector<RegimeBand> out;
  for (size_t i = 0; i < names.size(); ++i) {
    const double batch = D(batches[i]);
    if (i > 0 && names[i] == names[i - 1]) {
      out.back().to = batch;
      continue;
    }
    double from = batch;
    if (i > 0) {
      const auto between = Crossings(batches.subspan(i - 1, 2), speedup_total.subspan(i - 1, 2), kGain);
      from = between.empty() ? std::sqrt(batch * D(batches[i - 1])) : between.front();
      out.back().to = from;
    }
    out.push_back({from, batch, names[i]});
  }
  return out;
}

std::string_view MeaningOfBd(Phase phase) {
  if (phase != Phase::kTrain) return "gamma w / (2 beta): a dense model is bound by arithmetic";
  return "arithmetic of a dense model takes as long as packs, gradients and AdamW's state";
}

Boundaries BoundariesOf(const ModelConfig& config, const MachineProfile& machine, DType format, double weight_bytes,
                        Phase phase) {
  const auto rate = [&](ProductKind kind) { return LargeProducts(machine, format, kind, config.hidden); };
  Boundaries out{.gamma = rate(ProductKind::kGateUp), .beta = machine.memory_bytes_per_s()};
  out.b_sat = SaturationBatch(config);
  // Of a value of a matrix: moved once a step, and multiplied with one token.
  double moved_s = weight_bytes / out.beta, multiplied_s = 2 / out.gamma;
  if (phase == Phase::kTrain) {
    constexpr double kGradBytes = 8;  // read and written back
    moved_s += moved_s + kGradBytes / (out.beta * machine.stream(format, ProductKind::kWeightGrad).efficiency);
    moved_s += AdamwBytes(format) / machine.adamw_bytes_per_s;
    multiplied_s += 2 / rate(ProductKind::kDown) + 2 / rate(ProductKind::kWeightGrad);
  }
  out.b_d = moved_s / multiplied_s;
  out.b_m = out.b_sat / std::log(20.0) * out.b_d;
  return out;
}

Plateau PlateauOf(std::span<const int64_t> batches, std::span<const double> speedup_total) {
  MOE_CHECK(batches.size() == speedup_total.size(), "{} batches, {} speed-ups", batches.size(), speedup_total.size());
  Plateau out;
  const double octave = std::log(2.0), rounding = 1e-9;
  std::vector<double> logs;
  for (const int64_t batch : batches) logs.push_back(std::log(D(batch)));
  if (logs.size() < 2 || logs.back() - logs.front() < octave - rounding) return out;
  const auto deviation = [&](double from) {  // of the octave from there: its ends, and the batches between them
    double most = std::max(std::abs(Between(logs, speedup_total, from) - 1),
                           std::abs(Between(logs, speedup_total, std::min(from + octave, logs.back())) - 1));
    for (size_t i = 0; i < logs.size(); ++i) {
      if (logs[i] > from && logs[i] < from + octave) most = std::max(most, std::abs(speedup_total[i] - 1));
    }
    return most;
  };
  constexpr double kSteps = 64;  // of an octave
  const double last = logs.back() - octave;
  for (double from = logs.front(); from <= last + rounding; from += octave / kSteps) {
    const double here = deviation(from);
    if (!out.deviation || here < *out.deviation - rounding) out = {std::exp(from), here};
  }
  return out;
}

std::vector<double> ActiveCrossings(std::span<const int64_t> batches, std::span<const double> speedup_active) {
  const auto least = std::ranges::min_element(speedup_active);
  const auto at = static_cast<size_t>(least - speedup_active.begin());
  if (at == 0 || at + 1 >= speedup_active.size()) return {};
  double x[3], y[3];
  for (size_t i = 0; i < 3; ++i) x[i] = std::log(D(batches[at + i - 1])), y[i] = speedup_active[at + i - 1];
  std::vector<double> out = {std::exp(Foot(x, y))};
  constexpr double kBack = 0.8;
  if (*least >= kBack) return out;
  const auto rises = Crossings(batches.subspan(at), speedup_active.subspan(at), kBack);
  if (!rises.empty()) out.push_back(rises.front());
  return out;
}

std::optional<int64_t> KneeOf(std::span<const int64_t> batches, std::span<const double> tokens_per_s) {
  const size_t n = batches.size();
  size_t knee = n;
  while (knee > 1) {
    const double octaves = std::log2(D(batches[knee - 1]) / D(batches[knee - 2]));
    const double gain = std::pow(tokens_per_s[knee - 1] / tokens_per_s[knee - 2], 1 / octaves);
    if (gain >= 1 + kKneeGain) break;
    --knee;
  }
  if (knee == n || n < 2) return std::nullopt;
  return batches[knee - 1];
}

}  // namespace moe
