#include "moe/mixture/router_losses.h"

#include <algorithm>
#include <numeric>

#include "moe/ops/chunks.h"

namespace moe {
namespace {

int64_t Total(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

// E / (its total) * n_e: what stands before p's mean in the Switch loss and its kin.
struct Fractions {
  std::span<const int64_t> counts, more;  // more may be empty
  double factor;

  Fractions(std::span<const int64_t> n, std::span<const int64_t> m = {})
      : counts(n),
        more(m),
        factor(static_cast<double>(n.size()) / static_cast<double>(std::max<int64_t>(Total(n) + Total(m), 1))) {}
  double operator()(size_t e) const { return factor * static_cast<double>(counts[e] + (more.empty() ? 0 : more[e])); }
};

struct Spread {
  double mean = 0, variance = 0;
  explicit Spread(std::span<const double> x) {
    for (const double v : x) mean += v;
    mean /= static_cast<double>(x.size());
    for (const double v : x) variance += (v - mean) * (v - mean);
    variance /= static_cast<double>(x.size());
  }
  // Squared coefficient of variation; 0 of zeros. By the variance: by the deviation its gradient at balance would be 0/0.
  double Value() const { return mean > 0 ? variance / (mean * mean) : 0; }
  double Gradient(double v, size_t n) const {
    return mean > 0 ? 2 * (v - mean - variance / mean) / (mean * mean * static_cast<double>(n)) : 0;
  }
};

std::span<const int32_t> SequencesOf(const RouterSaved& saved, ExecContext& ctx) {
  if (!saved.sequence_begin.empty()) return saved.sequence_begin;
  const auto one = ctx.arena.Alloc<int32_t>(2);
  one[0] = 0, one[1] = static_cast<int32_t>(saved.probs.rows);
  return one;
}

// Assignments of rows [begin, end).
void CountRows(const Routing& routing, int32_t begin, int32_t end, std::span<int64_t> counts) {
  std::ranges::fill(counts, 0);
  for (int32_t s = routing.slot_begin[static_cast<size_t>(begin)]; s < routing.slot_begin[static_cast<size_t>(end)]; ++s) {
    ++counts[static_cast<size_t>(routing.expert[static_cast<size_t>(s)])];
  }
}

}  // namespace

void MeasureLosses(const RouterConfig& config, const RouterSaved& saved, Routing& routing, ExecContext& ctx) {
  RouterLosses& losses = routing.aux.losses;
  const auto E = static_cast<size_t>(config.num_experts);
  if (routing.aux.num_tokens == 0) return;
  const auto n = static_cast<double>(routing.aux.num_tokens);
  const auto mean = [&](const Fractions& f) {
    double sum = 0;
    for (size_t e = 0; e < E; ++e) sum += f(e) * (saved.prob_sum[e] / n);
    return sum;
  };
  if (config.gshard_loss > 0) losses.gshard = mean(Fractions(saved.first_choices));
  if (config.global_loss > 0) losses.global = mean(Fractions(routing.aux.tokens_per_expert, saved.tokens_before));
  if (config.importance_loss > 0) losses.importance = Spread(saved.prob_sum).Value();
  if (!saved.load_slope.empty()) losses.load = Spread(saved.load).Value();
  if (config.sequence_loss <= 0) return;
  Arena::Scope scope(ctx.arena);
  const auto begin = SequencesOf(saved, ctx);
  const auto counts = ctx.arena.Alloc<int64_t>(config.num_experts);
  for (size_t i = 0; i + 1 < begin.size(); ++i) {
    CountRows(routing, begin[i], begin[i + 1], counts);
    const Fractions f(counts);
    for (int64_t t = begin[i]; t < begin[i + 1]; ++t) {  // padding's p is 0
      const float* p = saved.probs.row(t);
      for (size_t e = 0; e < E; ++e) losses.sequence += f(e) * static_cast<double>(p[e]) / n;
    }
  }
}

ProbGradients LossGradients(const RouterConfig& config, const RouterSaved& saved, const Routing& routing, float loss_scale,
                            ExecContext& ctx) {
  const int64_t E = config.num_experts;
  const auto n = static_cast<double>(std::max<int64_t>(routing.aux.num_tokens, 1));
  const bool by_sequence = config.sequence_loss > 0 && !saved.sequence_begin.empty();
  const auto all = ctx.arena.AllocZero<double>(E);  // what every token has
  const auto add = [&](double coefficient, const Fractions& f) {
    for (size_t e = 0; coefficient > 0 && e < static_cast<size_t>(E); ++e) all[e] += coefficient * f(e) / n;
  };
  add(config.balance_loss, Fractions(routing.aux.tokens_per_expert));
  add(config.gshard_loss, Fractions(saved.first_choices));
  add(config.global_loss, Fractions(routing.aux.tokens_per_expert, saved.tokens_before));
  if (!by_sequence) add(config.sequence_loss, Fractions(routing.aux.tokens_per_expert));
  if (config.importance_loss > 0) {
    const Spread spread(saved.prob_sum);
    for (size_t e = 0; e < static_cast<size_t>(E); ++e) {
      all[e] += config.importance_loss * spread.Gradient(saved.prob_sum[e], static_cast<size_t>(E));
    }
  }
  ProbGradients out;
  if (by_sequence) {
    out.begin = saved.sequence_begin;
  } else {
    const auto one = ctx.arena.Alloc<int32_t>(2);
    one[0] = 0, one[1] = static_cast<int32_t>(saved.probs.rows);
    out.begin = one;
  }
  const auto rows = static_cast<int64_t>(out.begin.size()) - 1;
  out.by_p = {ctx.arena.Alloc<float>(rows * E).data(), rows, E};
  const auto counts = ctx.arena.Alloc<int64_t>(E);
  for (int64_t i = 0; i < rows; ++i) {
    const auto s = static_cast<size_t>(i);
    if (by_sequence) CountRows(routing, out.begin[s], out.begin[s + 1], counts);
    const Fractions f(by_sequence ? counts : routing.aux.tokens_per_expert);
    for (size_t e = 0; e < static_cast<size_t>(E); ++e) {
      const double own = by_sequence ? config.sequence_loss * f(e) / n : 0;
      out.by_p(i, static_cast<int64_t>(e)) = static_cast<float>(loss_scale * (all[e] + own));
    }
  }
  return out;
}

void AddLoadGradient(const RouterConfig& config, const RouterSaved& saved, const Routing& routing, float loss_scale,
                     MatView<float> d_logits, ExecContext& ctx) {
  if (saved.load_slope.empty()) return;
  const Spread spread(saved.load);
  const auto by_load = ctx.arena.Alloc<double>(config.num_experts);
  for (size_t e = 0; e < by_load.size(); ++e) {
    by_load[e] = loss_scale * config.load_loss * spread.Gradient(saved.load[e], by_load.size());
  }
  ForEachChunk(d_logits.rows, RowsPerChunk(d_logits.cols), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const auto s0 = static_cast<size_t>(routing.slot_begin[static_cast<size_t>(t)]);
      const auto s1 = static_cast<size_t>(routing.slot_begin[static_cast<size_t>(t) + 1]);
      const int32_t next = s0 == s1 ? -1 : saved.next_best[static_cast<size_t>(t)];
      if (next < 0) continue;  // padding, or all chosen
      const float* slope = saved.load_slope.row(t);
      float* d_z = d_logits.row(t);
      double all = 0, of_chosen = 0;
      for (int64_t e = 0; e < d_logits.cols; ++e) {
        const double d = by_load[static_cast<size_t>(e)] * static_cast<double>(slope[e]);
        d_z[e] += static_cast<float>(d), all += d;
      }
      for (const int32_t e : routing.expert.subspan(s0, s1 - s0)) {
        of_chosen += by_load[static_cast<size_t>(e)] * static_cast<double>(slope[e]);
      }
      d_z[next] -= static_cast<float>(of_chosen);  // what the chosen are compared with
      d_z[routing.expert[s1 - 1]] -= static_cast<float>(all - of_chosen);
    }
  });
}

}  // namespace moe
