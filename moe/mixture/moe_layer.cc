#include "moe/mixture/moe_layer.h"

#include <algorithm>
#include <cstring>

#include "moe/mixture/combine.h"
#include "moe/ops/chunks.h"
#include "moe/ops/elementwise.h"

namespace moe {
namespace {

constexpr int64_t kWidthMultiple = 16;  // gates and ups are interleaved in groups of it

MatView<float> AllocMat(int64_t rows, int64_t cols, ExecContext& ctx) {
  return {ctx.arena.Alloc<float>(rows * cols).data(), rows, cols};
}

// Tokens that are not padding, when some are: their rows, in order. Empty when all are tokens.
struct ValidRows {
  std::span<const int32_t> rows;  // [tokens]
  std::span<int32_t> token_row;   // [T] its inverse, -1: padding
  int64_t count = 0;              // tokens
};
ValidRows FindValidRows(const Routing& routing, ExecContext& ctx) {
  const int64_t T = static_cast<int64_t>(routing.slot_begin.size()) - 1;
  ValidRows out{.count = routing.aux.num_tokens};
  if (out.count == T) return out;
  const auto rows = ctx.arena.Alloc<int32_t>(out.count);
  out.token_row = ctx.arena.Alloc<int32_t>(T);
  int32_t next = 0;
  for (size_t t = 0; t < static_cast<size_t>(T); ++t) {
    const bool is_token = routing.slot_begin[t] < routing.slot_begin[t + 1];
    out.token_row[t] = is_token ? next : -1;
    if (is_token) rows[static_cast<size_t>(next++)] = static_cast<int32_t>(t);
  }
  out.rows = rows;
  return out;
}

// The tokens' rows of m, side by side: m itself when there is no padding.
MatView<const float> OnlyValid(MatView<const float> m, const ValidRows& valid, ExecContext& ctx) {
  if (valid.count == m.rows) return m;
  const MatView<float> out = AllocMat(valid.count, m.cols, ctx);
  ForEachChunk(valid.count, RowsPerChunk(m.cols), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(out.row(i), m.row(valid.rows[static_cast<size_t>(i)]), static_cast<size_t>(m.cols) * sizeof(float));
    }
  });
  return out;
}

// A list of at most E + 2 problems in the arena.
template <class Problem>
class ProblemList {
 public:
  ProblemList(int64_t capacity, ExecContext& ctx) : all_(ctx.arena.Alloc<Problem>(capacity)) {}
  void Add(const Problem& problem) { all_[count_++] = problem; }
  std::span<const Problem> span() const { return all_.first(count_); }

 private:
  std::span<Problem> all_;
  size_t count_ = 0;
};

// Calls fn(expert, first row, rows) for every expert that has rows.
template <class F>
void ForEachBusyExpert(const ExpertLayout& layout, F&& fn) {
  for (int64_t e = 0; e < layout.num_experts(); ++e) {
    if (layout.rows_of(e) > 0) fn(e, int64_t{layout.begin[static_cast<size_t>(e)]}, layout.rows_of(e));
  }
}

MatView<const float> InputOf(const ExpertLayout& layout, int64_t begin, int64_t rows) {
  return layout.row_token.empty() ? layout.input.Rows(begin, rows) : layout.input;
}
std::span<const int32_t> InputRowsOf(const ExpertLayout& layout, int64_t begin, int64_t rows) {
  if (layout.row_token.empty()) return {};
  return layout.row_token.subspan(static_cast<size_t>(begin), static_cast<size_t>(rows));
}

MatView<float> RowsOrEmpty(MatView<float> m, int64_t begin, int64_t rows) {
  return m.empty() ? m : m.Rows(begin, rows);
}

}  // namespace

ExpertLayout GroupedLayout(const DispatchPlan& plan, MatView<const float> x) {
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
  w.router = &store.Add(prefix + "router", {E, D}, /*decay=*/true);
  w.router_packed = PackedParameter(w.router, DType::kF32);
  w.gate_up = PackedParameter(&store.Add(prefix + "experts.gate_up", {E, 2 * F, D}, true, E), format);
  w.down = PackedParameter(&store.Add(prefix + "experts.down", {E, D, F}, true, E), format);
  if (Fs > 0) {
    w.shared_gate_up = PackedParameter(&store.Add(prefix + "shared.gate_up", {2 * Fs, D}, true), format);
    w.shared_down = PackedParameter(&store.Add(prefix + "shared.down", {D, Fs}, true), format);
  }
  return w;
}

void Repack(MoeWeights& weights, bool with_transposed, ExecContext& ctx) {
  for (PackedParameter* p :
       {&weights.router_packed, &weights.gate_up, &weights.down, &weights.shared_gate_up, &weights.shared_down}) {
    if (p->count() > 0) p->Repack(with_transposed, ctx);
  }
}

namespace {

// Gate, up and activation, then down, of every busy expert and of the shared ones: two lists of products into the matrices of
// `saved` (gate_up empty: not kept).
void RunExperts(const MoeLayer& layer, MatView<const float> x, const ValidRows& valid, MoeSaved& saved,
                MatView<float> shared_out, ExecContext& ctx) {
  const MoeWeights& w = layer.weights;
  ProblemList<GemmProblem> up(saved.layout.num_experts() + 1, ctx), down(saved.layout.num_experts() + 1, ctx);
  ForEachBusyExpert(saved.layout, [&](int64_t e, int64_t begin, int64_t rows) {
    up.Add({.a = InputOf(saved.layout, begin, rows),
            .a_rows = InputRowsOf(saved.layout, begin, rows),
            .weight = &w.gate_up.forward(e),
            .epilogue = Epilogue::kSwiglu,
            .c = saved.hidden.Rows(begin, rows),
            .pre_activation = RowsOrEmpty(saved.gate_up, begin, rows)});
    down.Add({.a = saved.hidden.Rows(begin, rows), .weight = &w.down.forward(e), .c = saved.expert_out.Rows(begin, rows)});
  });
  if (!shared_out.empty() && shared_out.rows > 0) {
    up.Add({.a = x,
            .a_rows = valid.rows,
            .weight = &w.shared_gate_up.forward(),
            .epilogue = Epilogue::kSwiglu,
            .c = saved.shared_hidden,
            .pre_activation = saved.shared_gate_up});
    down.Add({.a = saved.shared_hidden, .weight = &w.shared_down.forward(), .c = shared_out});
  }
  GroupedGemm(up.span(), ctx);
  GroupedGemm(down.span(), ctx);
}

// Forward with everything in `saved`; what only backward needs is made when training.
Status Run(const MoeLayer& layer, MatView<const float> x, std::span<const uint8_t> valid_flags, MatView<float> y, bool training,
           MoeSaved& saved, ExecContext& ctx) {
  const MoeConfig& config = layer.config;
  const RouterConfig& rc = config.router;
  const int64_t T = x.rows, D = x.cols, E = rc.num_experts, F = config.expert_width, Fs = config.shared_width();
  const MatView<float> logits = AllocMat(T, E, ctx);
  LinearForward(layer.weights.router_packed, x, logits, Epilogue::kStore, ctx);
  saved.router.probs = logits;  // in their place
  MOE_TRY(saved.routing, Route(rc, logits, valid_flags, &saved.router, ctx));

  const int64_t capacity = training && rc.capacity_factor > 0
                               ? ExpertCapacity(rc.capacity_factor, saved.routing.aux.num_tokens, rc.top_k, E)
                               : kNoCapacity;
  saved.plan = BuildDispatchPlan(saved.routing, E, capacity, ctx);
  saved.layout = config.executor == Executor::kPadded
                     ? PaddedLayout(saved.routing, saved.plan, BucketRows(saved.plan, capacity), x, ctx)
                     : GroupedLayout(saved.plan, x);
  const ValidRows valid = Fs > 0 ? FindValidRows(saved.routing, ctx) : ValidRows{};
  saved.token_row = valid.token_row;
  const int64_t rows = saved.layout.num_rows();
  if (training) {
    saved.gate_up = AllocMat(rows, 2 * F, ctx);
    saved.shared_gate_up = AllocMat(valid.count, 2 * Fs, ctx);
  }
  saved.hidden = AllocMat(rows, F, ctx);
  saved.shared_hidden = AllocMat(valid.count, Fs, ctx);
  saved.expert_out = AllocMat(rows, D, ctx);

  Arena::Scope scope(ctx.arena);
  const MatView<float> shared_out = Fs > 0 ? AllocMat(valid.count, D, ctx) : MatView<float>();
  RunExperts(layer, x, valid, saved, shared_out, ctx);
  Combine(saved.routing, saved.layout.slot_row, saved.routing.gate, saved.expert_out, shared_out, valid.token_row, y, ctx);
  return {};
}

}  // namespace

Status MoeLayer::Forward(MatView<const float> x, std::span<const uint8_t> valid, MatView<float> y, MoeSaved* saved,
                         RouterAux* aux, int64_t* num_dropped, ExecContext& ctx) const {
  const int64_t E = config.router.num_experts;
  MOE_CHECK(y.rows == x.rows && y.cols == x.cols, "y [{},{}], expected [{},{}]", y.rows, y.cols, x.rows, x.cols);
  MOE_CHECK(weights.router_packed.N() == E && weights.router_packed.K() == x.cols, "the router is [{},{}], expected [{},{}]",
            weights.router_packed.N(), weights.router_packed.K(), E, x.cols);
  if (saved != nullptr) {
    *saved = {};
    MOE_TRY(Run(*this, x, valid, y, /*training=*/true, *saved, ctx));
    if (aux != nullptr) *aux = saved->routing.aux;
    if (num_dropped != nullptr) *num_dropped = saved->plan.num_dropped;
    return {};
  }
  const auto counts = ctx.arena.Alloc<int64_t>(aux != nullptr ? E : 0);  // all that outlives an inference
  Arena::Scope scope(ctx.arena);
  MoeSaved scratch;
  MOE_TRY(Run(*this, x, valid, y, /*training=*/false, scratch, ctx));
  if (aux != nullptr) {
    std::copy_n(scratch.routing.aux.tokens_per_expert.begin(), E, counts.begin());
    *aux = scratch.routing.aux;
    aux->tokens_per_expert = counts;
  }
  if (num_dropped != nullptr) *num_dropped = 0;
  return {};
}

void MoeLayer::Backward(MatView<const float> x, const MoeSaved& saved, MatView<const float> d_y, float loss_scale,
                        MatView<float> d_x, ExecContext& ctx) const {
  const MoeWeights& w = weights;
  const ExpertLayout& layout = saved.layout;
  const int64_t T = x.rows, D = x.cols, E = config.router.num_experts, F = config.expert_width, Fs = config.shared_width();
  const int64_t rows = layout.num_rows();
  MOE_CHECK(d_y.rows == T && d_y.cols == D && d_x.rows == T && d_x.cols == D, "d_y [{},{}] d_x [{},{}], expected [{},{}]",
            d_y.rows, d_y.cols, d_x.rows, d_x.cols, T, D);
  Arena::Scope scope(ctx.arena);

  // Through combine: to the gates and to the experts' outputs.
  const auto d_gate = ctx.arena.Alloc<float>(static_cast<int64_t>(saved.routing.gate.size()));
  const MatView<float> d_out = AllocMat(rows, D, ctx);
  CombineBackward(saved.routing, layout.slot_row, saved.expert_out, d_y, d_gate, d_out, ctx);
  if (config.executor == Executor::kPadded) ZeroEmptyRows(saved.plan, layout, d_out, ctx);

  const MatView<float> d_logits = AllocMat(T, E, ctx);
  RouteBackward(config.router, saved.routing, saved.router, d_gate, loss_scale, d_logits, ctx);

  // Padding may hold anything, NaN too: no product reads its rows.
  const ValidRows valid = FindValidRows(saved.routing, ctx);
  const bool shared = Fs > 0 && valid.count > 0;
  const MatView<const float> d_shared_out = shared ? OnlyValid(d_y, valid, ctx) : MatView<const float>();
  const MatView<float> d_hidden = AllocMat(rows, F, ctx), d_gate_up = AllocMat(rows, 2 * F, ctx);
  const MatView<float> d_input = AllocMat(rows, D, ctx);
  const MatView<float> d_shared_hidden = AllocMat(shared ? valid.count : 0, Fs, ctx);
  const MatView<float> d_shared_gate_up = AllocMat(shared ? valid.count : 0, 2 * Fs, ctx);
  const MatView<float> d_shared_input = shared ? AllocMat(valid.count, D, ctx) : MatView<float>();

  ProblemList<GemmProblem> to_hidden(E + 1, ctx), to_input(E + 1, ctx);
  ProblemList<WeightGradProblem> to_weights(2 * E + 3, ctx);
  ForEachBusyExpert(layout, [&](int64_t e, int64_t begin, int64_t n) {
    const MatView<const float> d_o = d_out.Rows(begin, n);
    to_hidden.Add({.a = d_o, .weight = &w.down.transposed(e), .c = d_hidden.Rows(begin, n)});
    to_input.Add({.a = d_gate_up.Rows(begin, n), .weight = &w.gate_up.transposed(e), .c = d_input.Rows(begin, n)});
    to_weights.Add({.d_y = d_o, .x = saved.hidden.Rows(begin, n), .d_w = w.down.grad(e), .format = w.down.format()});
    to_weights.Add({.d_y = d_gate_up.Rows(begin, n),
                    .x = InputOf(layout, begin, n),
                    .x_rows = InputRowsOf(layout, begin, n),
                    .d_w = w.gate_up.grad(e),
                    .format = w.gate_up.format()});
  });
  if (shared) {
    to_hidden.Add({.a = d_shared_out, .weight = &w.shared_down.transposed(), .c = d_shared_hidden});
    to_input.Add({.a = d_shared_gate_up, .weight = &w.shared_gate_up.transposed(), .c = d_shared_input});
    to_weights.Add(
        {.d_y = d_shared_out, .x = saved.shared_hidden, .d_w = w.shared_down.grad(), .format = w.shared_down.format()});
    to_weights.Add({.d_y = d_shared_gate_up,
                    .x = x,
                    .x_rows = valid.rows,
                    .d_w = w.shared_gate_up.grad(),
                    .format = w.shared_gate_up.format()});
  }
  if (valid.count > 0) {
    to_weights.Add({.d_y = OnlyValid(d_logits, valid, ctx), .x = x, .x_rows = valid.rows, .d_w = w.router_packed.grad()});
  }

  GroupedGemm(to_hidden.span(), ctx);
  SwigluBackward(saved.gate_up, d_hidden, d_gate_up, ctx);
  if (shared) SwigluBackward(saved.shared_gate_up, d_shared_hidden, d_shared_gate_up, ctx);
  GroupedGemm(to_input.span(), ctx);
  GroupedWeightGrad(to_weights.span(), ctx);

  // d_x: the shared experts' part, the slots' in order, the router's.
  Combine(saved.routing, layout.slot_row, {}, d_input, d_shared_input, saved.token_row, d_x, ctx);
  Gemm({.a = d_logits, .weight = &w.router_packed.transposed(), .epilogue = Epilogue::kAccumulate, .c = d_x}, ctx);
}

}  // namespace moe
