// What routing policies cost, as shares of a training layer's forward pass.

#include <array>
#include <numeric>
#include <string>

#include "moe/mixture/capacity.h"
#include "moe/mixture/combine.h"
#include "moe/mixture/moe_layer.h"
#include "moe/planner/bench_grouped.h"
#include "moe/planner/bench_moe.h"
#include "moe/planner/bench_operands.h"
#include "moe/planner/random_weights.h"

namespace moe {
namespace {

struct NamedPolicy {
  std::string_view name, keys;  // what it changes of a normalized softmax
};
constexpr std::array kPolicies = {
    NamedPolicy{"softmax", ""},
    NamedPolicy{"topk_softmax", "score=topk_softmax"},
    NamedPolicy{"sigmoid", "score=sigmoid"},
    NamedPolicy{"sqrt_softplus", "score=sqrt_softplus"},
    NamedPolicy{"sparsemixer", "score=sparsemixer,normalize=false,top_k=2"},
    NamedPolicy{"relu", "score=relu"},
    NamedPolicy{"selection-bias", "balance_bias=kept"},
    NamedPolicy{"groups", "groups=8,top_groups=4,group_score=sum_of_two"},
    NamedPolicy{"gaussian", "noise=gaussian,noise_scale=1"},
    NamedPolicy{"gumbel", "noise=gumbel,noise_scale=1"},
    NamedPolicy{"jitter", "noise=jitter,noise_scale=0.01"},
    NamedPolicy{"sinkhorn", "selection=sinkhorn"},
    NamedPolicy{"expert_choice", "selection=expert_choice,normalize=false,allow_noncausal=true"},
    NamedPolicy{"hash", "selection=hash,balance_loss=0"},
    NamedPolicy{"drop-by-position", "capacity_factor=1.25"},
    NamedPolicy{"drop-first-choices", "capacity_factor=1.25,drop=first_choices"},
    NamedPolicy{"drop-by-score", "capacity_factor=1.25,drop=score"},
    NamedPolicy{"drop-at-random", "capacity_factor=1.25,drop=random"},
    NamedPolicy{"all-losses", "gshard_loss=1,importance_loss=1,sequence_loss=1,global_loss=1"},
    NamedPolicy{"load-loss", "noise=gaussian,noise_scale=1,load_loss=1"},
    NamedPolicy{"mlp-gate", "gate=mlp,gate_width=64"},
    NamedPolicy{"cosine-gate", "gate=cosine,gate_width=64"},
};

struct Work {
  ParameterStore store;
  MoeLayer layer;
  BenchOperands operands;
  MatView<float> x, y;
  std::vector<int32_t> ids;
  Arena arena;  // of saved
  MoeSaved saved;

  LayerTokens tokens() const { return {.ids = ids, .key = 1}; }
};

Status Forward(const Work& w, MoeSaved& saved, ExecContext& ctx) {
  return w.layer.Forward(w.x, w.tokens(), w.y, &saved, nullptr, nullptr, ctx);
}

std::shared_ptr<Work> MakeWork(const MoeShape& s, const RouterConfig& router, DType format, ExecContext& ctx) {
  auto w = std::make_shared<Work>();
  const MoeConfig config{.router = router, .expert_width = s.F};
  w->layer = {.config = config, .weights = AddMoeWeights(config, s.D, "", format, w->store)};
  uint64_t seed = 1;
  for (Parameter& parameter : w->store.all()) FillRandomValues(parameter.value.span(), 0.02f, seed++, ctx);
  Repack(w->layer.weights, /*with_transposed=*/false, ctx);
  w->x = w->operands.Matrix(s.T, s.D, ctx);
  w->y = w->operands.Zeros(s.T, s.D);
  w->ids.resize(static_cast<size_t>(s.T));
  std::iota(w->ids.begin(), w->ids.end(), 0);
  ExecContext own{ctx.pool, w->arena, ctx.kernels};
  const Status status = Forward(*w, w->saved, own);
  MOE_CHECK(status.has_value(), "{}", status.error().Message());
  return w;
}

// All of the layer but the experts.
void RunRouter(const Work& w, ExecContext& ctx) {
  Arena::Scope scope(ctx.arena);
  const RouterConfig& config = w.layer.config.router;
  const MoeWeights& weights = w.layer.weights;
  const int64_t T = w.x.rows, E = config.num_experts;
  const MatView<float> logits{ctx.arena.Alloc<float>(T * E).data(), T, E};
  GateSaved gate;
  GateForward(config, weights.gate, w.x, /*training=*/true, /*key=*/1, logits, gate, ctx);
  RouterSaved saved{.probs = logits};
  const std::span<const float> bias =
      weights.selection_bias == nullptr ? std::span<const float>() : weights.selection_bias->value.span();
  Result<Routing> routing =
      Route(config, {.logits = logits, .selection_bias = bias, .ids = w.ids, .training = true, .key = 1}, &saved, ctx);
  MOE_CHECK(routing.has_value(), "{}", routing.error().Message());
  const auto kept = KeepWithinCapacity(config, config.capacity.factor, *routing, {}, /*key=*/1, ctx);
  const DispatchPlan plan = BuildDispatchPlan(*routing, E, kept, ctx);
  NormalizeKept(config, plan.slot_row, *routing, ctx);
  Combine(*routing, plan.slot_row, routing->gate, w.saved.expert_out, {}, {}, w.y, ctx);
}

}  // namespace

std::vector<BenchCase> MoePolicyCases(const BenchShapes& shapes, DType format) {
  std::vector<BenchCase> out;
  for (const MoeShape& s : shapes.moe) {
    if (!ManyRowsPerExpert(s)) continue;
    for (const NamedPolicy& policy : kPolicies) {
      const std::string text =
          fmt::format("top_k={}{}{}{}", s.k, s.k == 1 ? ",normalize=false" : "", policy.keys.empty() ? "" : ",", policy.keys);
      const auto config = ParsePolicy(text, s.E, "");
      if (!config) continue;  // groups that do not divide the experts, for one
      const double of_row = GemmFlop(1, 3 * s.F, s.D), of_router = GemmFlop(s.T, s.E, s.D);
      out.push_back({.group = "router",
                     .name = fmt::format("{}/policy/{}/{}", Name(format), policy.name, NameOf(s)),
                     .kind = "policies",
                     .bounds = {{PeakOf(format), of_router + of_row * static_cast<double>(s.T * s.k)}},
                     .reference = {.name = "router, selection, plan, combine", .is_part = true},
                     .memory_bytes = s.E * 3 * s.D * s.F * (SizeOf(DType::kF32) + SizeOf(format)) +
                                     s.T * (s.k * (2 * s.D + 3 * s.F) + 4 * s.D + 4 * s.E) * SizeOf(DType::kF32),
                     .prepare = [=, router = *config](ExecContext& ctx) {
                       const auto work = MakeWork(s, router, format, ctx);
                       const auto rows = static_cast<double>(work->saved.plan.num_rows());
                       return BenchRun{.run =
                                           [work, &ctx] {
                                             Arena::Scope scope(ctx.arena);
                                             MoeSaved saved;
                                             const Status status = Forward(*work, saved, ctx);
                                             MOE_CHECK(status.has_value(), "{}", status.error().Message());
                                           },
                                       .reference = [work, &ctx] { RunRouter(*work, ctx); },
                                       .bounds = {{PeakOf(format), of_router + of_row * rows}}};
                     }});
    }
  }
  return out;
}

}  // namespace moe
