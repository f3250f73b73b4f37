#include "moe/planner/measured_routing.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "moe/base/check.h"
#include "moe/ops/chunks.h"
#include "moe/planner/routing_trace.h"

namespace moe {
namespace {

double D(int64_t n) {
  return static_cast<double>(n);
}

// Equal ones as one.
void Merge(std::vector<Gap>& gaps) {
  std::ranges::sort(gaps, {}, [](const Gap& g) { return std::tuple(g.sequence, g.tokens); });
  size_t kept = 0;
  for (const Gap& gap : gaps) {
    const bool same = kept > 0 && gaps[kept - 1].sequence == gap.sequence && gaps[kept - 1].tokens == gap.tokens;
    if (same) {
      gaps[kept - 1].count += gap.count;
    } else {
      gaps[kept++] = gap;
    }
  }
  gaps.resize(kept);
  gaps.shrink_to_fit();
}

std::vector<std::vector<Gap>> GapsOf(const RoutedText::Layer& layer, std::span<const int64_t> sequence_begin) {
  const auto E = static_cast<size_t>(layer.experts);
  std::vector<std::vector<Gap>> gaps(E);
  std::vector<int64_t> next(E);  // the first token that may belong to a gap
  for (size_t s = 0; s + 1 < sequence_begin.size(); ++s) {
    const int64_t begin = sequence_begin[s], end = sequence_begin[s + 1];
    const auto close = [&](size_t e, int64_t t) {
      if (t > next[e]) gaps[e].push_back({.sequence = end - begin, .tokens = t - next[e], .count = 1});
      next[e] = t + 1;
    };
    std::ranges::fill(next, begin);
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t i = layer.slot_begin[static_cast<size_t>(t)]; i < layer.slot_begin[static_cast<size_t>(t) + 1]; ++i) {
        close(static_cast<size_t>(layer.expert[static_cast<size_t>(i)]), t);
      }
    }
    for (size_t e = 0; e < E; ++e) close(e, end);
  }
  for (auto& of_expert : gaps) Merge(of_expert);
  return gaps;
}

// A step's runs, cut to what sequences have. Runs of one length, `count` of them.
struct Runs {
  int64_t tokens = 0, count = 0;
};
std::vector<Runs> RunsOf(const Step& step, int64_t longest) {
  std::vector<Runs> runs;
  const auto add = [&](int64_t tokens, int64_t count) {
    if (tokens >= longest && count > 0) runs.push_back({longest, count * (tokens / longest)});
    if (tokens % longest > 0 && count > 0) runs.push_back({tokens % longest, count});
  };
  add(step.rows_per_sequence(), step.full_sequences());
  add(step.rows_of_last(), 1);
  return runs;
}

// The chance that no token of a run chose the expert. Sequences count by their length, and only those of `longest` or more
// tokens, however short the run is: so that a longer one, of which every piece is a run too, never touches less.
double Untouched(const std::vector<Gap>& gaps, int64_t run, int64_t longest, int64_t tokens_of_sequences) {
  double sum = 0;
  for (const Gap& gap : gaps) {
    if (gap.sequence < longest || gap.tokens < run) continue;
    sum += D(gap.count) * D(gap.tokens - run + 1) * D(gap.sequence) / D(gap.sequence - run + 1);
  }
  return std::min(1.0, sum / D(tokens_of_sequences));
}

struct RankExperts {
  size_t begin = 0, end = 0;
};
RankExperts BusiestBlock(const ExpertChances& chances, int64_t ranks) {
  const auto E = std::ssize(chances.p), size = CeilDiv(E, ranks);
  RankExperts best;
  double most = -1;
  for (int64_t begin = 0; begin < E; begin += size) {
    const int64_t end = std::min(begin + size, E);
    double sum = 0;
    for (int64_t e = begin; e < end; ++e) sum += chances.p[static_cast<size_t>(e)];
    if (sum > most) most = sum, best = {static_cast<size_t>(begin), static_cast<size_t>(end)};
  }
  return best;
}

}  // namespace

MeasuredRouting Summarize(const RoutedText& text) {
  MOE_CHECK(text.sequence_begin.size() >= 2 && text.sequence_begin.front() == 0, "a text without sequences");
  MeasuredRouting out{.tokens = text.sequence_begin.back()};
  for (size_t s = 1; s < text.sequence_begin.size(); ++s) {
    out.sequences.push_back(text.sequence_begin[s] - text.sequence_begin[s - 1]);
  }
  std::ranges::sort(out.sequences);
  for (const RoutedText::Layer& layer : text.layers) {
    out.chances.emplace_back(), out.gaps.emplace_back();
    if (layer.experts == 0) continue;
    MOE_CHECK(std::ssize(layer.slot_begin) == out.tokens + 1, "choices of {} tokens, expected {}", layer.slot_begin.size() - 1,
              out.tokens);
    std::vector<double>& p = out.chances.back().p;
    p.resize(static_cast<size_t>(layer.experts));
    for (const int32_t e : layer.expert) p[static_cast<size_t>(e)] += 1;
    for (double& chance : p) chance /= D(out.tokens);
    out.gaps.back() = GapsOf(layer, text.sequence_begin);
  }
  return out;
}

Result<MeasuredRouting> MeasureRouting(Model& model, std::span<const Document> documents, const EvaluateOptions& options,
                                       ExecContext& ctx) {
  if (!model.config().has_experts()) return Err("model", "has no experts: every layer is dense");
  constexpr uint64_t kSeed = 1;
  std::vector<TracedLayer> traced = LayersToTrace(model);
  RoutedText text;
  int64_t tokens = 0;
  Tracer tracer(ctx);
  EvaluateOptions evaluation = options;
  evaluation.on_router_logits = [&](std::span<const RowInfo> rows, std::span<const MatView<float>> logits) -> Status {
    const TracedStep step(rows, kSeed, tokens);
    for (size_t s = 0; s + 1 < step.sequence_begin.size(); ++s) {
      text.sequence_begin.push_back(tokens + step.sequence_begin[s]);
    }
    for (TracedLayer& layer : traced) MOE_TRY(tracer.Add(step, logits[static_cast<size_t>(layer.layer)], layer));
    tokens += std::ssize(rows);
    return {};
  };
  MOE_TRY(Evaluate(model, documents, evaluation, ctx));
  text.sequence_begin.push_back(tokens);
  text.layers.resize(model.config().layers.size());
  for (TracedLayer& layer : traced) {
    text.layers[static_cast<size_t>(layer.layer)] = {layer.router.num_experts, std::move(layer.slot_begin),
                                                     std::move(layer.expert)};
  }
  return Summarize(text);
}

int64_t RunOf(const MeasuredRouting& routing, int64_t wanted) {
  int64_t held = 0;
  size_t i = routing.sequences.size();
  while (i > 0 && 2 * held < routing.tokens) held += routing.sequences[--i];
  return std::min(wanted, routing.sequences[i]);
}

ExpertChances BusiestRank(const ExpertChances& chances, int64_t ranks) {
  const RankExperts block = BusiestBlock(chances, ranks);
  return {{chances.p.begin() + static_cast<int64_t>(block.begin), chances.p.begin() + static_cast<int64_t>(block.end)}};
}

std::vector<double> DistinctExpertsOf(const MeasuredRouting& routing, const Step& step, int64_t ranks) {
  const int64_t longest = RunOf(routing, step.phase == Phase::kDecode ? 1 : std::max<int64_t>(step.context, 1));
  const std::vector<Runs> runs = RunsOf(step, longest);
  int64_t tokens = 0;
  for (const int64_t length : routing.sequences) tokens += length >= longest ? length : 0;
  std::vector<double> out;
  for (size_t l = 0; l < routing.chances.size(); ++l) {
    const RankExperts block = BusiestBlock(routing.chances[l], ranks);
    double distinct = 0;
    for (size_t e = block.begin; e < block.end; ++e) {
      double untouched = 1;
      for (const Runs& run : runs) {
        untouched *= std::pow(Untouched(routing.gaps[l][e], run.tokens, longest, tokens), D(run.count * ranks));
      }
      distinct += 1 - untouched;
    }
    out.push_back(distinct);
  }
  return out;
}

}  // namespace moe
