#include "moe/mixture/replay.h"

#include <algorithm>
#include <numeric>

#include "moe/mixture/capacity.h"
#include "moe/mixture/dispatch_plan.h"
#include "moe/mixture/executor.h"

namespace moe {

Result<Replay> ReplayPolicy(const RouterConfig& config, MatView<const float> logits, std::span<const float> bias,
                            const ReplayOptions& options, ExecContext& ctx) {
  const int64_t T = logits.rows, E = logits.cols;
  MOE_CHECK(bias.empty() || static_cast<int64_t>(bias.size()) == E, "a bias of {} for {}", bias.size(), E);
  const bool by_score = config.selection == RouterSelection::kTopK;
  const bool takes_selection_bias = by_score && config.score != RouterScore::kRelu && config.score != RouterScore::kSparsemixer;
  if (!bias.empty() && !config.bias && !takes_selection_bias) {
    return Err("bias", "got one, expected none: {} with {} has no selection score to add it to, and bias=true is not set",
               NameIn(kRouterSelections, config.selection), NameIn(kRouterScores, config.score));
  }
  Arena::Scope scope(ctx.arena);
  MatView<const float> z = logits;
  if (config.bias && !bias.empty()) {
    const MatView<float> sum{ctx.arena.Alloc<float>(T * E).data(), T, E};
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t e = 0; e < E; ++e) sum(t, e) = logits(t, e) + bias[static_cast<size_t>(e)];
    }
    z = sum;
  }
  const auto places = ctx.arena.Alloc<int32_t>(options.ids.empty() ? T : 0);
  std::iota(places.begin(), places.end(), 0);
  const RouteInput input{.logits = z,
                         .selection_bias = config.bias ? std::span<const float>() : bias,
                         .ids = options.ids.empty() ? places : options.ids,
                         .sequence_begin = options.sequence_begin,
                         .training = options.training,
                         .key = options.seed};
  MOE_TRY(Routing routing, Route(config, input, nullptr, ctx));
  const double factor = options.training ? config.capacity.factor : config.capacity.eval_factor;
  const auto kept = KeepWithinCapacity(config, factor, routing, options.sequence_begin, options.seed, ctx);
  const bool fixed = config.capacity.scope == CapacityScope::kBatch || options.sequence_begin.empty();
  const int64_t capacity = fixed ? ExpertCapacity(config, factor, T) : kNoCapacity;
  const DispatchPlan plan = BuildDispatchPlan(routing, E, kept, ctx);
  NormalizeKept(config, plan.slot_row, routing, ctx);
  Replay out{.slot_begin = {routing.slot_begin.begin(), routing.slot_begin.end()},
             .expert = {routing.expert.begin(), routing.expert.end()},
             .gate = {routing.gate.begin(), routing.gate.end()},
             .tokens_per_expert = {routing.aux.tokens_per_expert.begin(), routing.aux.tokens_per_expert.end()},
             .num_dropped = plan.num_dropped,
             .bucket_rows = std::min(T, BucketRows(plan, capacity)),  // no token comes to an expert twice
             .balance_loss = routing.aux.balance_loss,
             .z_loss = routing.aux.z_loss,
             .entropy = routing.aux.entropy};
  for (size_t i = 0; i < plan.slot_row.size(); ++i) {
    out.kept.push_back(plan.slot_row[i] >= 0);
    if (!out.kept[i]) out.gate[i] = 0;
  }
  out.padded_rows = E * out.bucket_rows - plan.num_rows();
  return out;
}

}  // namespace moe
