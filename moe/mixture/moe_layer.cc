#include "moe/mixture/moe_layer.h"

#include <algorithm>

#include "moe/mixture/capacity.h"
#include "moe/mixture/combine.h"
#include "moe/mixture/experts.h"
#include "moe/mixture/shared_gate.h"
#include "moe/mixture/zero_computation.h"
#include "moe/ops/chunks.h"
#include "moe/ops/elementwise.h"

namespace moe {
namespace {

constexpr int64_t kWidthMultiple = 16;  // gates and ups are interleaved in groups of it

MatView<float> AllocMat(int64_t rows, int64_t cols, ExecContext& ctx) {
  return AllocMat(rows, cols, DType::kF32, ctx).as<float>();
}

std::span<const float> ValuesOf(const Parameter* vector) {
  return vector == nullptr ? std::span<const float>() : vector->value.span();
}

}  // namespace

ExpertLayout GroupedLayout(const DispatchPlan& plan, ConstAnyMat x) {
  return {.begin = plan.expert_begin, .slot_row = plan.slot_row, .row_token = plan.row_token, .input = x};
}

std::vector<ExpertGroup> MoeConfig::experts() const {
  if (!groups.empty()) return groups;
  return {{.spec = {.width = expert_width}, .count = router.num_experts}};
}

void SetExperts(std::vector<ExpertGroup> groups, MoeConfig& config) {
  size_t joined = 0;
  for (const ExpertGroup& group : groups) {
    const bool same = joined > 0 && groups[joined - 1].spec == group.spec;
    same ? void(groups[joined - 1].count += group.count) : void(groups[joined++] = group);
  }
  groups.resize(joined);
  config.groups = std::move(groups);
  config.expert_width = 0;
  if (config.groups.size() != 1 || config.groups[0].count != config.router.num_experts) return;
  if (config.groups[0].spec == ExpertSpec{.width = config.groups[0].spec.width}) {
    config.expert_width = config.groups[0].spec.width;
    config.groups.clear();
  }
}

std::string ExpertsText(const MoeConfig& config) {
  if (config.groups.empty()) return fmt::format("{} experts of width {}", config.router.num_experts, config.expert_width);
  std::string list;
  for (const ExpertGroup& group : config.groups) list += (list.empty() ? "" : ", ") + ToText(group);
  return fmt::format("{} experts ({})", config.router.num_experts, list);
}

int64_t ExpertValues(const MoeConfig& config, int64_t D) {
  int64_t values = 0;
  for (const ExpertGroup& group : config.experts()) values += group.count * ValuesOf(group.spec, D);
  return values;
}

int64_t ActiveExpertValues(const MoeConfig& config, int64_t D) {
  const int64_t all = ExpertValues(config, D), E = config.router.num_experts, k = config.router.top_k;
  return all / E * k + all % E * k / E;  // in this order it does not overflow
}

namespace {

Status ValidateExperts(const MoeConfig& config, const std::string& where) {
  if (config.groups.empty()) {
    if (config.expert_width >= kWidthMultiple && config.expert_width % kWidthMultiple == 0) return {};
    return Err(where + ": expert_width", "got {}, expected a multiple of {}", config.expert_width, kWidthMultiple);
  }
  int64_t count = 0;
  for (const ExpertGroup& group : config.groups) {
    MOE_TRY(Validate(group.spec, fmt::format("{}: \"{}\"", where, ToText(group))));
    if (group.count < 1 || group.count > config.router.num_experts) {
      return Err(where + ": expert_groups", "got {} experts in a group, expected 1 to {}", group.count,
                 config.router.num_experts);
    }
    count += group.count;
  }
  if (count != config.router.num_experts) {
    return Err(where + ": expert_groups", "got {} experts in all groups, expected {}", count, config.router.num_experts);
  }
  if (config.executor == Executor::kBlockSparse) {
    return Err(where + ": executor",
               "got block-sparse with experts that differ, expected another: its blocks are those of one shape of gated SiLU "
               "experts");
  }
  if (config.num_shared_experts > 0 && config.shared_expert_width == 0) {
    return Err(where + ": shared_expert_width", "got nothing, expected a width: experts that differ have none to take");
  }
  return {};
}

}  // namespace

Status Validate(const MoeConfig& config, const std::string& where) {
  MOE_TRY(Validate(config.router, where));
  MOE_TRY(ValidateExperts(config, where));
  if (config.num_shared_experts < 0) {
    return Err(where + ": shared_experts", "got {}, expected 0 or more", config.num_shared_experts);
  }
  if (config.shared_expert_width < 0 || config.shared_width() % kWidthMultiple != 0) {
    return Err(where + ": shared_expert_width", "got {}, expected a multiple of {}", config.shared_expert_width,
               kWidthMultiple);
  }
  if (config.shared_gate && config.num_shared_experts == 0) {
    return Err(where + ": shared_expert_gate", "got true without shared experts, expected both");
  }
  return {};
}

namespace {

ExpertWeights AddExperts(const ExpertGroup& group, int64_t first, int64_t D, const std::string& prefix, DType format,
                         ParameterStore& store) {
  const ExpertSpec& spec = group.spec;
  const int64_t n = group.count, F = spec.width, N = spec.product_width();
  ExpertWeights w{.spec = spec, .first = first, .count = n};
  const auto packed = [&](const char* name, int64_t rows, int64_t cols) {
    return PackedParameter(&store.Add(prefix + name, {n, rows, cols}, true, n), format);
  };
  if (spec.is_ffn()) {
    w.gate_up = packed(spec.gated ? "gate_up" : "up", N, D);
    if (spec.depth == 2) w.middle = packed("middle", N, F);
    w.down = packed("down", D, F);
  }
  if (spec.kind == ExpertKind::kConstant) {
    w.constant = &store.Add(prefix + "constant", {n, D}, /*decay=*/false, n);
    w.mix = &store.Add(prefix + "mix", {n, 2, D}, true, n);
  }
  return w;
}

}  // namespace

MoeWeights AddMoeWeights(const MoeConfig& config, int64_t D, const std::string& prefix, DType format, ParameterStore& store) {
  const int64_t E = config.router.num_experts, Fs = config.shared_width();
  MoeWeights w{.format = format};
  w.gate = AddGateWeights(config.router, D, prefix, store);
  if (config.router.selects_by_bias()) w.selection_bias = &store.Add(prefix + "selection_bias", {E}, /*decay=*/false);
  const std::vector<ExpertGroup> groups = config.experts();
  for (size_t g = 0; g < groups.size(); ++g) {
    const std::string number = groups.size() > 1 ? fmt::format("{}.", g) : "";
    const int64_t first = w.experts.empty() ? 0 : w.experts.back().first + w.experts.back().count;
    w.experts.push_back(AddExperts(groups[g], first, D, prefix + "experts." + number, format, store));
  }
  if (Fs > 0) {
    w.shared_gate_up = PackedParameter(&store.Add(prefix + "shared.gate_up", {2 * Fs, D}, true), format);
    w.shared_down = PackedParameter(&store.Add(prefix + "shared.down", {D, Fs}, true), format);
  }
  if (config.shared_gate) w.shared_gate = &store.Add(prefix + "shared.gate", {1, D}, true);
  return w;
}

void Repack(MoeWeights& weights, bool with_transposed, ExecContext& ctx) {
  const auto repack = [&](PackedParameter& p) {
    if (p.count() > 0) p.Repack(with_transposed, ctx);
  };
  weights.gate.ForEachMatrix(repack);
  for (ExpertWeights& group : weights.experts) repack(group.gate_up), repack(group.middle), repack(group.down);
  repack(weights.shared_gate_up), repack(weights.shared_down);
}

namespace {

void ForceExperts(std::span<const int32_t> forced, Routing& routing) {
  MOE_CHECK(forced.size() == routing.expert.size(), "experts forced on {} slots of {}", forced.size(), routing.expert.size());
  routing.expert = forced;
  std::ranges::fill(routing.aux.tokens_per_expert, 0);
  for (const int32_t e : forced) ++routing.aux.tokens_per_expert[static_cast<size_t>(e)];
}

// Forward with everything in `saved`; what only backward needs is made when training.
Status Run(const MoeLayer& layer, MatView<const float> x, const LayerTokens& tokens, MatView<float> y, bool training,
           MoeSaved& saved, ExecContext& ctx) {
  const MoeConfig& config = layer.config;
  const RouterConfig& rc = config.router;
  const int64_t T = x.rows, D = x.cols, E = rc.num_experts, Fs = config.shared_width();
  const MatView<float> logits = AllocMat(T, E, ctx);
  ctx.Enter(StepPart::kRouter);
  GateForward(rc, layer.weights.gate, x, training, tokens.key, logits, saved.gate, ctx);
  saved.router.probs = logits;  // in their place
  const RouteInput route{.logits = logits,
                         .valid = tokens.valid,
                         .selection_bias = ValuesOf(layer.weights.selection_bias),
                         .ids = tokens.ids,
                         .sequence_begin = tokens.sequence_begin,
                         .tokens_before = tokens.tokens_before,
                         .training = training,
                         .key = tokens.key};
  for (int64_t t = 0; t < tokens.logits_out.rows; ++t) std::copy_n(logits.row(t), E, tokens.logits_out.row(t));
  if (tokens.routing != nullptr) {
    saved.routing = *tokens.routing;
  } else {
    MOE_TRY(saved.routing, Route(rc, route, &saved.router, ctx));
  }
  if (!tokens.forced.empty()) ForceExperts(tokens.forced, saved.routing);
  const double factor = training ? layer.training_capacity_factor() : rc.capacity.eval_factor;
  const int64_t capacity = rc.capacity.scope == CapacityScope::kBatch
                               ? ExpertCapacity(rc, factor, saved.routing.aux.num_tokens)
                               : kNoCapacity;  // buckets then follow the most loaded expert
  const auto within = KeepWithinCapacity(rc, factor, saved.routing, tokens.sequence_begin, tokens.key, ctx);
  int64_t num_zero = 0;
  const auto kept = WithoutZeroExperts(layer.weights, saved.routing, within, num_zero, ctx);
  saved.plan = BuildDispatchPlan(saved.routing, E, kept, ctx);
  saved.plan.num_zero = num_zero;
  saved.plan.num_dropped -= num_zero;
  NormalizeKept(rc, saved.plan.slot_row, saved.routing, ctx);
  ctx.Enter(StepPart::kExperts);
  const DType format = layer.weights.format;
  const ConstAnyMat input = saved.input = Rounded(x, format, ctx);
  const MatView<const float> gated = rc.gates_input ? x : MatView<const float>();
  switch (config.executor) {
    case Executor::kGrouped:
    case Executor::kLoop:
      saved.layout = GroupedLayout(saved.plan, input);
      break;
    case Executor::kPadded:
      if (const int64_t most = INT32_MAX / E, rows = BucketRows(saved.plan, capacity); rows > most) {
        return Err("capacity", "got buckets of {} rows for {} experts, expected {} rows at most", rows, E, most);
      }
      saved.layout = PaddedLayout(saved.routing, saved.plan, BucketRows(saved.plan, capacity), input, gated, ctx);
      break;
    case Executor::kBlockSparse:
      saved.layout = BlockSparseLayout(saved.plan, config.expert_width, input, ctx);
      break;
  }
  if (rc.gates_input && config.executor != Executor::kPadded) {  // rows of their own, for every executor alike
    const AnyMat rows = AllocExpertRows(saved, D, format, ctx);
    GatedRows(saved.routing, saved.layout.slot_row, x, rows, ctx);
    saved.layout.input = rows, saved.layout.row_token = {};
  }
  const ValidRows valid = Fs > 0 ? FindValidRows(saved.routing, ctx) : ValidRows{};
  saved.token_row = valid.token_row;
  AllocExperts(layer, valid, training, saved, ctx);
  const Parameter* shared_gate = layer.weights.shared_gate;
  if (shared_gate != nullptr) {
    saved.shared_out = AllocMat(valid.count, D, ctx);
    saved.shared_gate = ctx.arena.Alloc<float>(valid.count);
  }

  Arena::Scope scope(ctx.arena);
  const MatView<float> shared_out = shared_gate != nullptr ? saved.shared_out
                                    : Fs > 0               ? AllocMat(valid.count, D, ctx)
                                                           : MatView<float>();
  RunExperts(layer, input, valid, saved, shared_out, ctx);
  if (shared_gate != nullptr) GateShared(*shared_gate, x, valid, saved, ctx);
  const std::span<const float> gates = rc.gates_input ? std::span<const float>() : saved.routing.gate;
  Combine(saved.routing, saved.layout.slot_row, gates, saved.expert_out, shared_out, valid.token_row, y, ctx);
  return {};
}

}  // namespace

Status MoeLayer::Forward(MatView<const float> x, const LayerTokens& tokens, MatView<float> y, MoeSaved* saved, RouterAux* aux,
                         int64_t* num_dropped, ExecContext& ctx) const {
  const int64_t E = config.router.num_experts;
  MOE_CHECK(y.rows == x.rows && y.cols == x.cols, "y [{},{}], expected [{},{}]", y.rows, y.cols, x.rows, x.cols);
  MOE_CHECK(weights.gate.first.K() == x.cols, "the router reads {} values, expected {}", weights.gate.first.K(), x.cols);
  if (saved != nullptr) {
    *saved = {};
    MOE_TRY(Run(*this, x, tokens, y, /*training=*/true, *saved, ctx));
    if (aux != nullptr) *aux = saved->routing.aux;
    if (num_dropped != nullptr) *num_dropped = saved->plan.num_dropped;
    return {};
  }
  const auto counts = ctx.arena.Alloc<int64_t>(aux != nullptr ? E : 0);  // all that outlives an inference
  Arena::Scope scope(ctx.arena);
  MoeSaved scratch;
  MOE_TRY(Run(*this, x, tokens, y, /*training=*/false, scratch, ctx));
  if (aux != nullptr) {
    std::copy_n(scratch.routing.aux.tokens_per_expert.begin(), E, counts.begin());
    *aux = scratch.routing.aux;
    aux->tokens_per_expert = counts;
  }
  if (num_dropped != nullptr) *num_dropped = scratch.plan.num_dropped;
  return {};
}

void MoeLayer::Backward(MatView<const float> x, const MoeSaved& saved, MatView<const float> d_y, float loss_scale,
                        MatView<float> d_x, ExecContext& ctx) const {
  const MoeWeights& w = weights;
  const ExpertLayout& layout = saved.layout;
  const int64_t T = x.rows, D = x.cols, E = config.router.num_experts, Fs = config.shared_width();
  MOE_CHECK(d_y.rows == T && d_y.cols == D && d_x.rows == T && d_x.cols == D, "d_y [{},{}] d_x [{},{}], expected [{},{}]",
            d_y.rows, d_y.cols, d_x.rows, d_x.cols, T, D);
  Arena::Scope scope(ctx.arena);
  ctx.Enter(StepPart::kRouter);

  // Through combine: to the experts' outputs, and to the gates, unless those were what the experts read.
  const bool gates_input = config.router.gates_input;
  const auto d_gate = ctx.arena.Alloc<float>(static_cast<int64_t>(saved.routing.gate.size()));
  const DType format = w.format;
  const AnyMat d_out = AllocExpertRows(saved, D, format, ctx);
  if (gates_input) {
    CombineBackward(saved.routing, layout.slot_row, {}, {}, d_y, {}, d_out, ctx);
  } else {
    CombineBackward(saved.routing, layout.slot_row, saved.routing.gate, saved.expert_out, d_y, d_gate, d_out, ctx);
  }
  if (config.executor == Executor::kPadded) ZeroEmptyRows(saved.plan, layout, d_out, ctx);

  // Padding may hold anything, NaN too: no product reads its rows.
  const ValidRows valid = FindValidRows(saved.routing, ctx);
  const MatView<float> d_logits = AllocMat(T, E, ctx);
  const auto through_router = [&] {
    RouteBackward(config.router, saved.routing, saved.router, saved.plan.slot_row, d_gate, loss_scale, d_logits, ctx);
    return GateBackward(config.router, w.gate, x, saved.gate, valid, d_logits, ctx);
  };
  GateGradient gate;
  if (!gates_input) gate = through_router();

  const bool shared = Fs > 0 && valid.count > 0;
  MatView<const float> d_shared = shared ? OnlyValid(d_y, valid, ctx) : MatView<const float>();
  std::span<const float> d_gated;  // by the shared gate's logits
  if (shared && w.shared_gate != nullptr) {
    const MatView<float> d_ungated = AllocMat(valid.count, D, ctx);
    d_gated = GateSharedBackward(*w.shared_gate, x, valid, saved, d_shared, d_ungated, ctx);
    d_shared = d_ungated;
  }
  ctx.Enter(StepPart::kExperts);
  const ConstAnyMat d_shared_out = shared ? Rounded(d_shared, format, ctx) : ConstAnyMat();
  const AnyMat d_input = AllocExpertRows(saved, D, format, ctx);
  const MatView<float> d_shared_input = shared ? AllocMat(valid.count, D, ctx) : MatView<float>();
  RunExpertsBackward(*this, saved.input, valid, saved, d_out, d_shared_out, d_input, d_shared_input, gate.weight, ctx);
  if (gates_input) {  // rows were gate * x
    CombineBackward(saved.routing, layout.slot_row, {}, d_input, x, d_gate, {}, ctx);
    gate = through_router();
    if (gate.weight) GroupedWeightGrad({&*gate.weight, 1}, ctx);
  }

  if (w.shared_gate != nullptr && !d_gated.empty()) AddSharedGateInput(*w.shared_gate, d_gated, d_shared_input, ctx);

  // d_x: the shared experts' part, the slots' in order, the router's.
  const std::span<const float> gates = gates_input ? saved.routing.gate : std::span<const float>();
  Combine(saved.routing, layout.slot_row, gates, d_input, d_shared_input, saved.token_row, d_x, ctx);
  AddGateInputGradient(config.router, w.gate, saved.gate, gate, d_x, ctx);
}

}  // namespace moe
