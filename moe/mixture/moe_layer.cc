#include "moe/mixture/moe_layer.h"

#include <algorithm>

#include "moe/mixture/capacity.h"
#include "moe/mixture/combine.h"
#include "moe/mixture/experts.h"
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

Status Validate(const MoeConfig& config, const std::string& where) {
  MOE_TRY(Validate(config.router, where));
  if (config.expert_width < kWidthMultiple || config.expert_width % kWidthMultiple != 0) {
    return Err(where + ": expert_width", "got {}, expected a multiple of {}", config.expert_width, kWidthMultiple);
  }
  if (config.num_shared_experts < 0) {
    return Err(where + ": shared_experts", "got {}, expected 0 or more", config.num_shared_experts);
  }
  if (config.shared_expert_width < 0 || config.shared_width() % kWidthMultiple != 0) {
    return Err(where + ": shared_expert_width", "got {}, expected a multiple of {}", config.shared_expert_width,
               kWidthMultiple);
  }
  return {};
}

MoeWeights AddMoeWeights(const MoeConfig& config, int64_t D, const std::string& prefix, DType format, ParameterStore& store) {
  const int64_t E = config.router.num_experts, F = config.expert_width, Fs = config.shared_width();
  MoeWeights w;
  w.gate = AddGateWeights(config.router, D, prefix, store);
  if (config.router.selects_by_bias()) w.selection_bias = &store.Add(prefix + "selection_bias", {E}, /*decay=*/false);
  w.gate_up = PackedParameter(&store.Add(prefix + "experts.gate_up", {E, 2 * F, D}, true, E), format);
  w.down = PackedParameter(&store.Add(prefix + "experts.down", {E, D, F}, true, E), format);
  if (Fs > 0) {
    w.shared_gate_up = PackedParameter(&store.Add(prefix + "shared.gate_up", {2 * Fs, D}, true), format);
    w.shared_down = PackedParameter(&store.Add(prefix + "shared.down", {D, Fs}, true), format);
  }
  return w;
}

void Repack(MoeWeights& weights, bool with_transposed, ExecContext& ctx) {
  weights.gate.ForEachMatrix([&](PackedParameter& p) { p.Repack(with_transposed, ctx); });
  for (PackedParameter* p : {&weights.gate_up, &weights.down, &weights.shared_gate_up, &weights.shared_down}) {
    if (p->count() > 0) p->Repack(with_transposed, ctx);
  }
}

namespace {

// Forward with everything in `saved`; what only backward needs is made when training.
Status Run(const MoeLayer& layer, MatView<const float> x, const LayerTokens& tokens, MatView<float> y, bool training,
           MoeSaved& saved, ExecContext& ctx) {
  const MoeConfig& config = layer.config;
  const RouterConfig& rc = config.router;
  const int64_t T = x.rows, D = x.cols, E = rc.num_experts, F = config.expert_width, Fs = config.shared_width();
  const MatView<float> logits = AllocMat(T, E, ctx);
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
  const double factor = training ? layer.training_capacity_factor() : rc.capacity.eval_factor;
  const int64_t capacity = rc.capacity.scope == CapacityScope::kBatch
                               ? ExpertCapacity(rc, factor, saved.routing.aux.num_tokens)
                               : kNoCapacity;  // buckets then follow the most loaded expert
  saved.plan = BuildDispatchPlan(saved.routing, E,
                                 KeepWithinCapacity(rc, factor, saved.routing, tokens.sequence_begin, tokens.key, ctx), ctx);
  NormalizeKept(rc, saved.plan.slot_row, saved.routing, ctx);
  const DType format = layer.weights.gate_up.format();
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
      saved.layout = BlockSparseLayout(saved.plan, F, input, ctx);
      break;
  }
  if (rc.gates_input && config.executor != Executor::kPadded) {  // rows of their own, for every executor alike
    const AnyMat rows = AllocMat(saved.layout.num_rows(), D, format, ctx);
    GatedRows(saved.routing, saved.layout.slot_row, x, rows, ctx);
    saved.layout.input = rows, saved.layout.row_token = {};
  }
  const ValidRows valid = Fs > 0 ? FindValidRows(saved.routing, ctx) : ValidRows{};
  saved.token_row = valid.token_row;
  const int64_t rows = saved.layout.num_rows();
  if (training) {
    saved.gate_up = AllocMat(rows, 2 * F, format, ctx);
    saved.shared_gate_up = AllocMat(valid.count, 2 * Fs, format, ctx);
  }
  saved.hidden = AllocMat(rows, F, format, ctx);
  saved.shared_hidden = AllocMat(valid.count, Fs, format, ctx);
  saved.expert_out = AllocMat(rows, D, format, ctx);

  Arena::Scope scope(ctx.arena);
  const MatView<float> shared_out = Fs > 0 ? AllocMat(valid.count, D, ctx) : MatView<float>();
  RunExperts(layer, input, valid, saved, shared_out, ctx);
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
  const int64_t rows = layout.num_rows();
  MOE_CHECK(d_y.rows == T && d_y.cols == D && d_x.rows == T && d_x.cols == D, "d_y [{},{}] d_x [{},{}], expected [{},{}]",
            d_y.rows, d_y.cols, d_x.rows, d_x.cols, T, D);
  Arena::Scope scope(ctx.arena);

  // Through combine: to the experts' outputs, and to the gates, unless those were what the experts read.
  const bool gates_input = config.router.gates_input;
  const auto d_gate = ctx.arena.Alloc<float>(static_cast<int64_t>(saved.routing.gate.size()));
  const DType format = w.gate_up.format();
  const AnyMat d_out = AllocMat(rows, D, format, ctx);
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
  const ConstAnyMat d_shared_out = shared ? Rounded(OnlyValid(d_y, valid, ctx), format, ctx) : ConstAnyMat();
  const AnyMat d_input = AllocMat(rows, D, format, ctx);
  const MatView<float> d_shared_input = shared ? AllocMat(valid.count, D, ctx) : MatView<float>();
  RunExpertsBackward(*this, saved.input, valid, saved, d_out, d_shared_out, d_input, d_shared_input, gate.weight, ctx);
  if (gates_input) {  // rows were gate * x
    CombineBackward(saved.routing, layout.slot_row, {}, d_input, x, d_gate, {}, ctx);
    gate = through_router();
    if (gate.weight) GroupedWeightGrad({&*gate.weight, 1}, ctx);
  }

  // d_x: the shared experts' part, the slots' in order, the router's.
  const std::span<const float> gates = gates_input ? saved.routing.gate : std::span<const float>();
  Combine(saved.routing, layout.slot_row, gates, d_input, d_shared_input, saved.token_row, d_x, ctx);
  AddGateInputGradient(config.router, w.gate, saved.gate, gate, d_x, ctx);
}

}  // namespace moe
