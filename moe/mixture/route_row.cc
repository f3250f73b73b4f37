#include "moe/mixture/route_row.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "moe/mixture/scores.h"

namespace moe {

namespace {

constexpr float kLeast = std::numeric_limits<float>::min();  // what is less cannot be divided by

// z - max, of logits however far apart.
void Shift(const float* z, float max, int64_t E, float* shifted) {
  for (int64_t e = 0; e < E; ++e) shifted[e] = std::max(z[e] - max, std::numeric_limits<float>::lowest());
}

}  // namespace

double WholeUnits(double x) {
  return std::round(x / kEntropyUnit) * kEntropyUnit;
}

bool IsSoftmaxOfChosen(const RouterConfig& config) {
  return config.score == RouterScore::kTopKSoftmax ||
         (config.score == RouterScore::kSoftmax && config.normalize && config.normalize_epsilon == 0);
}

void RowRouter::ValuesFromLogits(const RouteRow& row, float* values) const {
  if (hashes()) return HashValues(input.ids[static_cast<size_t>(row.t)], E(), values);
  std::copy_n(row.z, E(), values);
  for (size_t e = 0; e < log_column.size(); ++e) values[e] += log_column[e];
  if (!gumbel()) return;
  const int64_t first = std::max_element(row.z, row.z + E()) - row.z;
  Rng rng = NoiseOf(row);
  for (int64_t e = 0; e < E(); ++e) {
    const double u = rng.Uniform() + 0x1p-54;  // never 0
    values[e] += static_cast<float>(-config.noise_scale * std::log(-std::log(u)));
  }
  if (noise(RouterNoise::kGumbelLater)) values[first] = std::numeric_limits<float>::infinity();
}

void RowRouter::Choose(float* values, const RouteRow& row, const RowScratch& scratch) const {
  for (size_t e = 0; e < input.selection_bias.size(); ++e) values[e] += input.selection_bias[e];
  if (config.groups > 1) MaskGroups(config, values, scratch.selection);
  SelectTopK(values, E(), row.count, scratch.selection.keys, row.chosen);
}

void RowRouter::FinishGates(RouteRow& row) const {
  auto factor = static_cast<float>(config.scale);
  if (config.normalize && !config.normalize_after_drop) {
    float sum = 0;
    for (int64_t j = 0; j < row.count; ++j) sum += row.gate[j];
    factor = sum >= kLeast ? factor / (sum + static_cast<float>(config.normalize_epsilon)) : 0;
  }
  if (factor == 1) return;
  for (int64_t j = 0; j < row.count; ++j) row.gate[j] *= factor;
}

void RowRouter::Chances(const RouteRow& row, const RowScratch& scratch) const {
  const int64_t k = row.count;
  if (k == E()) {  // nobody else could take a place
    for (int64_t e = 0; e < E(); ++e) row.load[e] += 1, row.load_slope[e] = 0;
    *row.next_best = -1;
    return;
  }
  SelectTopK(scratch.noisy, E(), k + 1, scratch.selection.keys, scratch.best);
  const int32_t last = scratch.best[k - 1], next = *row.next_best = scratch.best[k];
  const double sigma = config.noise_scale;
  for (int64_t e = 0; e < E(); ++e) {
    const float v = scratch.noisy[e], v_last = scratch.noisy[last];
    const bool is_chosen = v > v_last || (v == v_last && e <= last);
    const double u = (static_cast<double>(row.z[e]) - static_cast<double>(scratch.noisy[is_chosen ? next : last])) / sigma;
    row.load[e] += std::erfc(-u / std::numbers::sqrt2) / 2;
    row.load_slope[e] = static_cast<float>(std::exp(-u * u / 2) * std::numbers::inv_sqrtpi / (std::numbers::sqrt2 * sigma));
  }
}

void RowRouter::Softmax(RouteRow& row, const RowScratch& scratch) const {
  const int64_t E = this->E();
  const bool made = config.score == RouterScore::kSparsemixer || row.count == 0, first = by_logits() && !made;
  if (first) SelectTopK(row.z, E, row.count, scratch.selection.keys, row.chosen);
  const float max = first ? row.z[row.chosen[0]] : ctx.kernels.max(row.z, E);
  if (!first && !made && from_logits()) ValuesFromLogits(row, scratch.values);
  Shift(row.z, max, E, scratch.shifted);
  const float sum = ctx.kernels.exp_sum(scratch.shifted, 0, E, row.p);  // from here z may be gone: p may lie over the logits
  if (!first && !made) {
    for (int64_t e = 0; !from_logits() && e < E; ++e) scratch.values[e] = row.p[e] / sum;
    Choose(scratch.values, row, scratch);
  }
  if (!made) {
    // A softmax over the chosen divides by what they sum to, exactly once.
    float denominator = sum;
    for (int64_t j = 0; j < row.count; ++j) row.gate[j] = row.p[row.chosen[j]];
    if (config.score == RouterScore::kTopKSoftmax || (IsSoftmaxOfChosen(config) && !config.normalize_after_drop)) {
      const auto add = [&] { denominator = std::accumulate(row.gate, row.gate + row.count, 0.0f); };
      add();
      constexpr float kFarOff = 1e-30f;  // bias, groups or hashing chose experts that vanish beside the largest
      if (denominator < kFarOff) {
        float best = std::numeric_limits<float>::lowest();
        for (int64_t j = 0; j < row.count; ++j) best = std::max(best, scratch.shifted[row.chosen[j]]);
        for (int64_t j = 0; j < row.count; ++j) row.gate[j] = std::exp(scratch.shifted[row.chosen[j]] - best);
        add();
      }
    }
    for (int64_t j = 0; j < row.count; ++j) row.gate[j] /= denominator;
  }
  ctx.kernels.scale(1 / sum, E, row.p);
  const double log_sum = std::log(static_cast<double>(sum));
  row.log_sum_exp = static_cast<double>(max) + log_sum;
  row.entropy = WholeUnits(log_sum - static_cast<double>(ctx.kernels.dot(row.p, scratch.shifted, E)));
}

void RowRouter::Elementwise(RouteRow& row, const RowScratch& scratch) const {
  const int64_t E = this->E();
  const float max = ctx.kernels.max(row.z, E);
  Shift(row.z, max, E, scratch.shifted);
  const float exp_sum = ctx.kernels.exp_sum(scratch.shifted, 0, E, scratch.exps);
  row.log_sum_exp = static_cast<double>(max) + std::log(static_cast<double>(exp_sum));
  if (row.softmax != nullptr) {
    for (int64_t e = 0; e < E; ++e) row.softmax[e] = scratch.exps[e] / exp_sum;
  }
  if (by_logits()) SelectTopK(row.z, E, row.count, scratch.selection.keys, row.chosen);
  if (!by_logits() && from_logits()) ValuesFromLogits(row, scratch.values);
  row.score_sum = ScoreElements(config.score, row.z, E, row.p, ctx);
  if (!by_logits()) {
    if (!from_logits()) std::copy_n(row.p, E, scratch.values);
    Choose(scratch.values, row, scratch);
  }
  for (int64_t j = 0; j < row.count; ++j) row.gate[j] = row.p[row.chosen[j]];
  if (row.score_sum >= kLeast) {
    ctx.kernels.scale(1 / row.score_sum, E, row.p);
  } else {
    row.score_sum = 0;
    std::fill_n(row.p, E, 0.0f);
  }
  double entropy = 0;
  for (int64_t e = 0; e < E; ++e) {
    if (row.p[e] > 0) entropy -= static_cast<double>(row.p[e]) * std::log(static_cast<double>(row.p[e]));
  }
  row.entropy = WholeUnits(entropy);
}

void RowRouter::Run(RouteRow& row, const RowScratch& scratch) const {
  if (noise(RouterNoise::kGaussian)) {
    Rng rng = NoiseOf(row);
    for (int64_t e = 0; e < E(); ++e) scratch.noisy[e] = row.z[e] + static_cast<float>(config.noise_scale * rng.Normal());
    if (row.load_slope != nullptr) Chances(row, scratch);
    row.z = scratch.noisy;
  }
  if (IsElementwise(config.score)) {
    Elementwise(row, scratch);
    return FinishGates(row);
  }
  if (config.score == RouterScore::kSparsemixer) {
    Sparsemix(row.z, E(), row.count, config.sparsemixer_jitter, row.chosen, row.gate, row.near);
  }
  Softmax(row, scratch);
  if (!IsSoftmaxOfChosen(config)) return FinishGates(row);
  const auto scale = static_cast<float>(config.scale);
  for (int64_t j = 0; scale != 1 && j < row.count; ++j) row.gate[j] *= scale;
}

}  // namespace moe
