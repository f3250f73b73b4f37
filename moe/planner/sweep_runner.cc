#include "moe/planner/sweep_runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "moe/base/clock.h"
#include "moe/planner/random_weights.h"

namespace moe {
namespace {

// A subject's turn in a round: steps until this much time; their median is the round's, so that a step during which somebody
// else had the core does not count.
constexpr double kTurnSeconds = 0.01;
constexpr int64_t kMaxTurnSteps = 32;
// The others and the probe have emptied the caches before every turn. In a loop of steps a model finds there what its last step
// left, so one step goes untimed first, unless steps are so long that filling a cache is lost in them.
constexpr double kWarmStepSeconds = 0.05;
constexpr double kLr = 1e-9;  // all the work of training, but the weights stay near where they were

}  // namespace

double MedianOf(std::vector<double> values) {
  const size_t middle = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(middle), values.end());
  if (values.size() % 2 == 1) return values[middle];
  return (values[middle] + *std::max_element(values.begin(), values.begin() + static_cast<int64_t>(middle))) / 2;
}

std::vector<RowInfo> RowsOfStep(const Step& step) {
  std::vector<RowInfo> rows;
  const int64_t sequences = step.sequences();
  for (int64_t s = 0; s < sequences; ++s) {
    const bool decode = step.phase == Phase::kDecode;
    const int64_t first = decode ? step.context : 0;
    const int64_t count = std::min(step.rows_per_sequence(), step.batch - s * step.rows_per_sequence());
    for (int64_t p = first; p < first + count; ++p) {
      rows.push_back({.sequence = static_cast<int32_t>(s), .position = static_cast<int32_t>(p)});
    }
  }
  return rows;
}

void DrawExperts(const ExpertChances& chances, int64_t tokens, int64_t top_k, Rng& rng, std::vector<int32_t>& out) {
  const auto E = static_cast<int64_t>(chances.p.size());
  std::vector<int32_t> order(static_cast<size_t>(E));
  std::iota(order.begin(), order.end(), 0);
  out.clear();
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = E - 1; i > 0; --i) std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(rng.Below(i + 1))]);
    // Points one apart on the line of all chances: none above 1, so no expert is met twice.
    double next = rng.Uniform(), at = 0;
    int64_t left = top_k;
    for (size_t i = 0; i < order.size() && left > 0; ++i) {
      at += chances.p[static_cast<size_t>(order[i])];
      const bool must = static_cast<int64_t>(order.size() - i) <= left;  // rounding must not leave a token short
      if (at <= next && !must) continue;
      out.push_back(order[i]), next += 1, --left;
    }
  }
}

SweepRunner::SweepRunner(const SweepSubject& subject, const SweepOptions& options, const Model* loaded, size_t index)
    : subject_(subject), options_(options), model_(loaded), tokens_(options.seed, index) {
  const bool training = options.phase == Phase::kTrain;
  if (subject.random_weights || training) {
    owned_ = std::make_unique<Model>(subject.config, options.format, training, /*masters=*/training);
    model_ = owned_.get();
  }
  for (const LayerSpec& layer : subject.config.layers) {
    const RouterConfig& router = layer.moe.router;
    const bool moe = layer.ffn == FfnKind::kMoe;
    chosen_.emplace_back(moe ? static_cast<size_t>(router.num_experts) : 0, 0.0);
    if (options.routing.kind == SweepRouting::kModel) continue;
    forced_chances_.push_back(moe ? options.routing.Chances(router.num_experts, router.top_k) : ExpertChances{});
  }
  forced_.resize(forced_chances_.size()), forced_views_.resize(forced_chances_.size());
}

void SweepRunner::Prepare(std::span<std::byte> weights, ExecContext& ctx) {
  if (owned_ == nullptr) return;
  if (options_.phase != Phase::kTrain) return GiveRandomWeights(*owned_, weights, options_.seed, ctx);
  owned_->Initialize(options_.seed, ctx);
  optimizer_.Reset(owned_->parameters());
  const auto packs = owned_->Packs();
  size_t i = 0;
  for (Parameter& parameter : owned_->parameters().all()) {
    optimized_.push_back({.parameter = &parameter, .packed = packs[i++].packed});
  }
}

void SweepRunner::StartCell(int64_t batch) {
  step_ = {options_.phase, batch, options_.context};
  rows_ = RowsOfStep(step_);
  logit_rows_.clear();
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (i + 1 == rows_.size() || rows_[i + 1].sequence != rows_[i].sequence) logit_rows_.push_back(static_cast<int32_t>(i));
  }
  targets_.resize(rows_.size());
  steps_ = 0, part_sum_ = {}, wait_sum_ = all_sum_ = 0;
  distinct_sum_.assign(subject_.config.layers.size(), 0);
  used_.assign(subject_.config.layers.size(), {});
  round_s_.clear();
}

Status SweepRunner::Run(KvCache& cache, ExecContext& ctx) {
  if (options_.phase != Phase::kTrain) {
    MOE_TRY(model_->Forward({.rows = rows_, .logit_rows = logit_rows_, .cache = &cache, .forced_experts = forced_views_},
                            &stats_, ctx));
    return {};
  }
  const auto scale = static_cast<float>(1.0 / static_cast<double>(rows_.size()));
  MOE_TRY(owned_->ForwardBackward({.rows = rows_, .forced_experts = forced_views_}, targets_, scale, 1.0f, &stats_, ctx));
  ctx.Enter(StepPart::kOptimizer);
  ApplyAdamw(optimizer_, optimized_, kLr, GlobalGradNorm(owned_->parameters(), ctx), ctx);
  return {};
}

Result<double> SweepRunner::Step(KvCache& cache, ExecContext& ctx) {
  for (RowInfo& row : rows_) row.token_id = static_cast<int32_t>(tokens_.Below(subject_.config.vocab_size));
  for (int32_t& target : targets_) target = static_cast<int32_t>(tokens_.Below(subject_.config.vocab_size));
  for (size_t l = 0; l < forced_.size(); ++l) {
    if (forced_chances_[l].p.empty()) continue;
    DrawExperts(forced_chances_[l], step_.batch, subject_.config.layers[l].moe.router.top_k, tokens_, forced_[l]);
    forced_views_[l] = forced_[l];
  }
  stats_.Clear();
  ctx.arena.Reset();
  ctx.clock = &clock_;
  clock_.Start();
  const double waited = ctx.pool.WaitSeconds(), start = NowSeconds();
  const Status status = Run(cache, ctx);
  last_s_ = NowSeconds() - start;
  clock_.Enter(StepPart::kOther);
  ctx.clock = nullptr;
  last_wait_s_ = ctx.pool.WaitSeconds() - waited;
  MOE_TRY(status);
  return last_s_;
}

// What the step's routers did.
void SweepRunner::Count() {
  for (size_t p = 0; p < part_sum_.size(); ++p) part_sum_[p] += clock_.seconds[p];
  wait_sum_ += last_wait_s_, all_sum_ += last_s_;
  tokens_seen_ += static_cast<double>(step_.batch);
  for (size_t l = 0; l < stats_.layers.size(); ++l) {
    const auto& tokens_per_expert = stats_.layers[l].tokens_per_expert;
    used_[l].resize(tokens_per_expert.size());
    for (size_t e = 0; e < used_[l].size(); ++e) {
      used_[l][e] |= tokens_per_expert[e] > 0;
      distinct_sum_[l] += tokens_per_expert[e] > 0 ? 1 : 0;
      chosen_[l][e] += static_cast<double>(tokens_per_expert[e]);
    }
  }
}

Status SweepRunner::Turn(bool measured, KvCache& cache, ExecContext& ctx) {
  if (!measured || last_s_ < kWarmStepSeconds) MOE_TRY(Step(cache, ctx));
  if (!measured && last_s_ >= kWarmStepSeconds) return {};
  double total = 0;
  turn_s_.clear();
  do {
    MOE_TRY(const double s, Step(cache, ctx));
    total += s;
    turn_s_.push_back(s);
    if (measured) Count();
  } while (total < kTurnSeconds && std::ssize(turn_s_) < kMaxTurnSteps);
  if (!measured) return {};
  steps_ += std::ssize(turn_s_);
  round_s_.push_back(MedianOf(turn_s_));
  return {};
}

SweepCell SweepRunner::Cell(const std::vector<size_t>& rounds) const {
  std::vector<double> times, halves[2];
  for (size_t i = 0; i < rounds.size(); ++i) {
    times.push_back(round_s_[rounds[i]]);
    halves[i % 2].push_back(times.back());
  }
  SweepCell cell{.s_per_step = MedianOf(std::move(times)), .steps = steps_, .distinct_experts = distinct_sum_};
  cell.s_min = *std::min_element(round_s_.begin(), round_s_.end());
  cell.s_max = *std::max_element(round_s_.begin(), round_s_.end());
  if (!halves[1].empty()) cell.repeat_error = std::abs(MedianOf(halves[0]) / MedianOf(halves[1]) - 1);
  for (size_t p = 0; p < part_sum_.size(); ++p) cell.part_s[p] = part_sum_[p] / all_sum_ * cell.s_per_step;
  cell.wait_s = wait_sum_ / all_sum_ * cell.s_per_step;
  for (double& distinct : cell.distinct_experts) distinct /= static_cast<double>(steps_);
  for (const auto& layer : used_) cell.experts_used.push_back(std::count(layer.begin(), layer.end(), 1));
  if (options_.phase == Phase::kDecode) {
    cell.cost = DecodeCost(subject_.config, options_.format, {step_.batch, options_.context}, cell.distinct_experts).total();
    return cell;
  }
  const StepOps ops = OpsOf({.config = subject_.config, .format = options_.format, .chances = Chances()}, step_);
  for (const StepOp& op : ops.ops) cell.cost += {.bytes = op.bytes, .flop = op.flop};
  return cell;
}

std::vector<ExpertChances> SweepRunner::Chances() const {
  std::vector<ExpertChances> out(chosen_.size());
  for (size_t l = 0; l < chosen_.size(); ++l) {
    if (!forced_chances_.empty()) out[l] = forced_chances_[l];
    if (!forced_chances_.empty()) continue;
    for (const double count : chosen_[l]) out[l].p.push_back(std::min(1.0, count / std::max(tokens_seen_, 1.0)));
  }
  return out;
}

}  // namespace moe
