#include "moe/planner/route_times.h"

#include <algorithm>

#include "moe/base/clock.h"
#include "moe/base/cpu_info.h"
#include "moe/base/progress.h"
#include "moe/mixture/capacity.h"
#include "moe/mixture/replay.h"
#include "moe/planner/random_weights.h"

namespace moe {
namespace {

constexpr int64_t kFewestRows = 256;
constexpr int64_t kRowMultiple = 64;

// A layer whose config is lent, and given back.
class LentConfig {
 public:
  explicit LentConfig(MoeLayer& layer) : layer_(layer), config_(layer.config) {}
  ~LentConfig() { layer_.config = config_; }
  LentConfig(const LentConfig&) = delete;
  LentConfig& operator=(const LentConfig&) = delete;

  const MoeConfig& own() const { return config_; }
  void Use(const MoeConfig& config) { layer_.config = config; }

 private:
  MoeLayer& layer_;
  MoeConfig config_;
};

// What the layer reads of a policy once tokens have chosen; its gate network stays.
RouterConfig AfterSelection(RouterConfig own, const RouterConfig& policy, bool training) {
  own.top_k = policy.top_k;
  own.normalize = policy.normalize, own.normalize_after_drop = policy.normalize_after_drop;
  own.normalize_epsilon = policy.normalize_epsilon, own.scale = policy.scale;
  own.capacity = policy.capacity;
  if (training) own.capacity.eval_factor = policy.capacity.factor;
  return own;
}

// One policy's runs.
struct TimedPolicy {
  RouterConfig policy;
  MoeConfig config;  // of the layer, but for the executor
};

class Timer {
 public:
  Timer(const RoutedRows& all, bool training, uint64_t seed, ExecContext& ctx)
      : all_(all), lent_(all.layer), training_(training), seed_(seed), ctx_(ctx) {
    x_ = Tensor({all.logits.rows, all.D}), y_ = Tensor({all.logits.rows, all.D});
    FillRandomValues(x_.span(), 1.0f, seed, ctx);
    Take(all.logits.rows);
  }

  // From here on, the first n rows.
  void Take(int64_t n) {
    n_ = n;
    sequence_begin_.clear();
    for (const int32_t begin : all_.sequence_begin) {
      if (begin < n) sequence_begin_.push_back(begin);
    }
    sequence_begin_.push_back(static_cast<int32_t>(n));
  }

  TimedPolicy Prepare(const RouterConfig& policy) const {
    TimedPolicy timed{policy, lent_.own()};
    timed.config.router = AfterSelection(lent_.own().router, policy, training_);
    return timed;
  }

  // Why the executor cannot; empty: it can.
  std::string WhyNot(const TimedPolicy& timed, Executor executor) {
    MoeConfig config = timed.config;
    config.executor = executor;
    config.router = lent_.own().router;
    if (const Status valid = Validate(config, "layer"); !valid) return valid.error().what;
    if (executor != Executor::kPadded) return "";
    ctx_.arena.Reset();
    RouterConfig policy = timed.policy;
    policy.bias = false;  // it is in the logits
    const auto replay = ReplayPolicy(policy, logits(), bias(policy), replay_options(), ctx_);
    if (!replay) return replay.error().what;
    // The executor's buckets are as large as the capacity says, and the most loaded expert's without one.
    const double factor = training_ ? policy.capacity.factor : policy.capacity.eval_factor;
    const int64_t rows = std::max(replay->bucket_rows, ExpertCapacity(policy, factor, n_));
    int64_t widest = config.expert_width;
    for (const ExpertGroup& group : config.groups) widest = std::max(widest, group.spec.width);
    const double bytes = static_cast<double>(rows) * static_cast<double>(all_.logits.cols * (2 * all_.D + widest) * 4);
    if (bytes <= static_cast<double>(AvailableMemoryBytes()) / 2) return "";
    return fmt::format("its buckets would take {}", FormatBytes(bytes));
  }

  Result<double> Run(const TimedPolicy& timed, Executor executor) {
    MoeConfig config = timed.config;
    config.executor = executor;
    lent_.Use(config);
    ctx_.arena.Reset();
    const double start = NowSeconds();
    RouterSaved saved;
    MOE_TRY(const Routing routing, Route(timed.policy,
                                         {.logits = logits(),
                                          .selection_bias = bias(timed.policy),
                                          .ids = ids(),
                                          .sequence_begin = sequence_begin_,
                                          .training = training_,
                                          .key = seed_},
                                         &saved, ctx_));
    const LayerTokens tokens{.ids = ids(), .sequence_begin = sequence_begin_, .key = seed_, .routing = &routing};
    MOE_TRY(all_.layer.Forward(x_.mat().Rows(0, n_), tokens, y_.mat().Rows(0, n_), nullptr, nullptr, nullptr, ctx_));
    return NowSeconds() - start;
  }

  int64_t rows() const { return n_; }

 private:
  MatView<const float> logits() const { return all_.logits.Rows(0, n_); }
  std::span<const int32_t> ids() const { return all_.ids.first(static_cast<size_t>(n_)); }
  std::span<const float> bias(const RouterConfig& policy) const {
    return TakesBiasOf(lent_.own().router, policy) ? all_.selection_bias : std::span<const float>();
  }
  ReplayOptions replay_options() const {
    return {.training = training_, .seed = seed_, .ids = ids(), .sequence_begin = sequence_begin_};
  }

  const RoutedRows& all_;
  LentConfig lent_;
  bool training_;
  uint64_t seed_;
  ExecContext& ctx_;
  Tensor x_, y_;  // [T,D]
  int64_t n_ = 0;
  std::vector<int32_t> sequence_begin_;
};

}  // namespace

PolicyTimes TimePolicies(const RoutedRows& rows, std::span<const RouterConfig> policies, bool training, uint64_t seed,
                         double seconds, const std::function<bool()>& go_on, ExecContext& ctx) {
  PolicyTimes out;
  if (policies.empty() || rows.logits.rows == 0) return out;
  Timer timer(rows, training, seed, ctx);
  const auto goes_on = [&] { return !go_on || go_on(); };

  // As many rows as fit into the time; the first run brings the weights into memory.
  const TimedPolicy first = timer.Prepare(policies[0]);
  const double runs = static_cast<double>(policies.size() * std::size(kExecutors) * (kTimedRepetitions + 1));
  for (int i = 0; i < 2; ++i) {
    const auto s = timer.Run(first, Executor::kGrouped);
    if (!s || i == 0) continue;
    const double fits = seconds / (*s * runs) * static_cast<double>(timer.rows());
    const auto whole = static_cast<int64_t>(std::min(fits, 1e15)) / kRowMultiple * kRowMultiple;
    timer.Take(std::min(rows.logits.rows, std::max(whole, kFewestRows)));
  }
  out.rows = timer.rows();

  std::vector<TimedPolicy> timed;
  for (const RouterConfig& policy : policies) timed.push_back(timer.Prepare(policy));
  const size_t columns = std::size(kExecutors);
  std::vector<std::vector<double>> samples(timed.size() * columns);
  out.times.assign(timed.size(), std::vector<ExecutorTime>(columns));
  for (size_t p = 0; p < timed.size(); ++p) {
    for (size_t i = 0; i < columns; ++i) out.times[p][i].why = timer.WhyNot(timed[p], kExecutors[i].executor);
  }
  for (int repetition = -1; repetition < kTimedRepetitions && goes_on(); ++repetition) {
    for (size_t p = 0; p < timed.size(); ++p) {
      for (size_t i = 0; i < columns; ++i) {
        ExecutorTime& time = out.times[p][i];
        if (!time.why.empty() || !goes_on()) continue;
        const auto s = timer.Run(timed[p], kExecutors[i].executor);
        if (!s) {
          time.why = s.error().what;
        } else if (repetition >= 0) {
          samples[p * columns + i].push_back(*s);
        }
      }
    }
    out.repetitions = std::max(repetition + 1, 0);
  }
  for (size_t p = 0; p < timed.size(); ++p) {
    for (size_t i = 0; i < columns; ++i) {
      ExecutorTime& time = out.times[p][i];
      auto& own = samples[p * columns + i];
      if (own.empty() && time.why.empty()) time.why = "stopped before it was measured";
      if (time.why.empty()) time.s = Summarize(std::move(own));
    }
  }
  return out;
}

}  // namespace moe
