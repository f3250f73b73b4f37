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
  for (const int64_t batch : options.batches) {
    Tally& tally = tallies_.emplace_back(Tally{.step = {options.phase, batch, options.context}});
    tally.rows = RowsOfStep(tally.step), tally.targets.resize(tally.rows.size());
    for (size_t i = 0; i < tally.rows.size(); ++i) {
      const bool last = i + 1 == tally.rows.size() || tally.rows[i + 1].sequence != tally.rows[i].sequence;
      if (last) tally.logit_rows.push_back(static_cast<int32_t>(i));
    }
    tally.distinct_sum.assign(subject.config.layers.size(), 0), tally.used.resize(subject.config.layers.size());
  }
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

Status SweepRunner::Run(const Tally& tally, KvCache& cache, ExecContext& ctx) {
  if (options_.phase != Phase::kTrain) {
    MOE_TRY(model_->Forward(
        {.rows = tally.rows, .logit_rows = tally.logit_rows, .cache = &cache, .forced_experts = forced_views_}, &stats_, ctx));
    return {};
  }
  const auto scale = static_cast<float>(1.0 / static_cast<double>(tally.rows.size()));
  MOE_TRY(
      owned_->ForwardBackward({.rows = tally.rows, .forced_experts = forced_views_}, tally.targets, scale, 1.0f, &stats_, ctx));
  ctx.Enter(StepPart::kOptimizer);
  ApplyAdamw(optimizer_, optimized_, kLr, GlobalGradNorm(owned_->parameters(), ctx), ctx);
  return {};
}

Status SweepRunner::Step(Tally& tally, KvCache& cache, ExecContext& ctx) {
  for (RowInfo& row : tally.rows) row.token_id = static_cast<int32_t>(tokens_.Below(subject_.config.vocab_size));
  for (int32_t& target : tally.targets) target = static_cast<int32_t>(tokens_.Below(subject_.config.vocab_size));
  for (size_t l = 0; l < forced_.size(); ++l) {
    if (forced_chances_[l].p.empty()) continue;
    DrawExperts(forced_chances_[l], tally.step.batch, subject_.config.layers[l].moe.router.top_k, tokens_, forced_[l]);
    forced_views_[l] = forced_[l];
  }
  stats_.Clear();
  ctx.arena.Reset();
  ctx.clock = &clock_;
  clock_.Start();
  const double waited = ctx.pool.WaitSeconds(), start = NowSeconds();
  const Status status = Run(tally, cache, ctx);
  tally.last_s = NowSeconds() - start;
  clock_.Enter(StepPart::kOther);
  ctx.clock = nullptr;
  tally.last_wait_s = ctx.pool.WaitSeconds() - waited;
  return status;
}

// What the last step did, its routers too.
void SweepRunner::Count(Tally& tally, Timed& turn) {
  for (size_t p = 0; p < turn.part_s.size(); ++p) turn.part_s[p] += clock_.seconds[p];
  turn.wait_s += tally.last_wait_s, turn.all_s += tally.last_s, ++turn.steps, ++tally.steps;
  tokens_seen_ += static_cast<double>(tally.step.batch);
  for (size_t l = 0; l < stats_.layers.size(); ++l) {
    const auto& tokens_per_expert = stats_.layers[l].tokens_per_expert;
    tally.used[l].resize(tokens_per_expert.size());
    for (size_t e = 0; e < tokens_per_expert.size(); ++e) {
      tally.used[l][e] |= tokens_per_expert[e] > 0;
      tally.distinct_sum[l] += tokens_per_expert[e] > 0 ? 1 : 0;
      chosen_[l][e] += static_cast<double>(tokens_per_expert[e]);
    }
  }
}

Status SweepRunner::Turn(size_t index, bool measured, KvCache& cache, ExecContext& ctx) {
  Tally& tally = tallies_[index];
  if (!measured || tally.last_s < kWarmStepSeconds) MOE_TRY(Step(tally, cache, ctx));
  if (!measured && tally.last_s >= kWarmStepSeconds) return {};
  double total = 0;
  turn_s_.clear();
  Timed turn;
  do {
    MOE_TRY(Step(tally, cache, ctx));
    total += tally.last_s;
    turn_s_.push_back(tally.last_s);
    if (measured) Count(tally, turn);
  } while (total < kTurnSeconds && std::ssize(turn_s_) < kMaxTurnSteps);
  turn.step_s = MedianOf(turn_s_);
  if (measured) tally.turns.push_back(turn);
  return {};
}

SweepCell SweepRunner::Cell(size_t index, const std::vector<size_t>& used) const {
  const Tally& tally = tallies_[index];
  std::vector<double> times, halves[2];
  Timed all;
  for (size_t i = 0; i < used.size(); ++i) {
    const Timed& turn = tally.turns[used[i]];
    times.push_back(turn.step_s);
    halves[i % 2].push_back(turn.step_s);
    for (size_t p = 0; p < all.part_s.size(); ++p) all.part_s[p] += turn.part_s[p];
    all.wait_s += turn.wait_s, all.all_s += turn.all_s;
  }
  SweepCell cell{.s_per_step = MedianOf(std::move(times)), .distinct_experts = tally.distinct_sum};
  for (const Timed& turn : tally.turns) cell.steps += turn.steps;
  const auto [least, most] = std::ranges::minmax(tally.turns, {}, &Timed::step_s);
  cell.s_min = least.step_s, cell.s_max = most.step_s;
  if (!halves[1].empty()) cell.repeat_error = std::abs(MedianOf(halves[0]) / MedianOf(halves[1]) - 1);
  for (size_t p = 0; p < all.part_s.size(); ++p) cell.part_s[p] = all.part_s[p] / all.all_s * cell.s_per_step;
  cell.wait_s = all.wait_s / all.all_s * cell.s_per_step;
  for (double& distinct : cell.distinct_experts) distinct /= static_cast<double>(tally.steps);
  for (const auto& layer : tally.used) cell.experts_used.push_back(std::count(layer.begin(), layer.end(), 1));
  if (options_.phase == Phase::kDecode) {
    cell.cost =
        DecodeCost(subject_.config, options_.format, {tally.step.batch, options_.context}, cell.distinct_experts).total();
    return cell;
  }
  const StepOps ops = OpsOf({.config = subject_.config, .format = options_.format, .chances = Chances()}, tally.step);
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
