#include "moe/mixture/experts.h"

#include <cstring>

#include "moe/ops/chunks.h"
#include "moe/ops/elementwise.h"

namespace moe {

ValidRows FindValidRows(const Routing& routing, ExecContext& ctx) {
  const int64_t T = static_cast<int64_t>(routing.slot_begin.size()) - 1;
  ValidRows out{.count = routing.aux.num_tokens};
  if (out.count == T) return out;
  const auto rows = ctx.arena.Alloc<int32_t>(out.count);
  out.token_row = ctx.arena.Alloc<int32_t>(T);
  int32_t next = 0;
  for (size_t t = 0; t < static_cast<size_t>(T); ++t) {
    const bool is_token = routing.valid[t] != 0;  // with or without slots
    out.token_row[t] = is_token ? next : -1;
    if (is_token) rows[static_cast<size_t>(next++)] = static_cast<int32_t>(t);
  }
  out.rows = rows;
  return out;
}

MatView<const float> OnlyValid(MatView<const float> m, const ValidRows& valid, ExecContext& ctx) {
  if (valid.count == m.rows) return m;
  const MatView<float> out{ctx.arena.Alloc<float>(valid.count * m.cols).data(), valid.count, m.cols};
  ForEachChunk(valid.count, RowsPerChunk(m.cols), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(out.row(i), m.row(valid.rows[static_cast<size_t>(i)]), static_cast<size_t>(m.cols) * sizeof(float));
    }
  });
  return out;
}

namespace {

void Run(std::span<const GemmProblem> problems, ExecContext& ctx) {
  GroupedGemm(problems, ctx);
}
void Run(std::span<const WeightGradProblem> problems, ExecContext& ctx) {
  GroupedWeightGrad(problems, ctx);
}

// A list of problems in the arena: at most `capacity` of them.
template <class Problem>
class ProblemList {
 public:
  ProblemList(int64_t capacity, ExecContext& ctx) : all_(ctx.arena.Alloc<Problem>(capacity)) {}
  void Add(const Problem& problem) { all_[count_++] = problem; }
  void RunAs(Executor executor, ExecContext& ctx) const {
    if (executor != Executor::kLoop) return Run(all_.first(count_), ctx);
    for (size_t i = 0; i < count_; ++i) Run(all_.subspan(i, 1), ctx);
  }

 private:
  std::span<Problem> all_;
  size_t count_ = 0;
};

// Calls fn(expert, first row, rows) for every expert that has rows and a product of its own.
template <class F>
void ForEachBusyExpert(const MoeLayer& layer, const ExpertLayout& layout, F&& fn) {
  if (layer.config.executor == Executor::kBlockSparse) return;  // one product serves all
  for (int64_t e = 0; e < layout.num_experts(); ++e) {
    if (layout.rows_of(e) > 0) fn(e, int64_t{layout.begin[static_cast<size_t>(e)]}, layout.rows_of(e));
  }
}

ConstAnyMat InputOf(const ExpertLayout& layout, int64_t begin, int64_t rows) {
  return layout.row_token.empty() ? layout.input.Rows(begin, rows) : layout.input;
}
std::span<const int32_t> InputRowsOf(const ExpertLayout& layout, int64_t begin, int64_t rows) {
  if (layout.row_token.empty()) return {};
  return layout.row_token.subspan(static_cast<size_t>(begin), static_cast<size_t>(rows));
}

AnyMat RowsOrEmpty(AnyMat m, int64_t begin, int64_t rows) {
  return m.empty() ? m : m.Rows(begin, rows);
}

// The blocks of [rows, E*F*width] that a matrix [rows, F*width] holds.
BlockMatrix AsBlocks(const ExpertLayout& layout, AnyMat m, int64_t width) {
  if (m.empty()) return {};
  return {.topology = &layout.topology, .values = {m.data, m.dtype, 1, m.size(), m.size()}, .width = width};
}

std::span<const MatView<float>> GradientsOf(const PackedParameter& weight, ExecContext& ctx) {
  const auto out = ctx.arena.Alloc<MatView<float>>(weight.count());
  for (int64_t e = 0; e < weight.count(); ++e) out[static_cast<size_t>(e)] = weight.grad(e);
  return out;
}

}  // namespace

void RunExperts(const MoeLayer& layer, ConstAnyMat x, const ValidRows& valid, MoeSaved& saved, MatView<float> shared_out,
                ExecContext& ctx) {
  const MoeWeights& w = layer.weights;
  const ExpertLayout& layout = saved.layout;
  const Executor executor = layer.config.executor;
  ProblemList<GemmProblem> up(layout.num_experts() + 1, ctx), down(layout.num_experts() + 1, ctx);
  ForEachBusyExpert(layer, layout, [&](int64_t e, int64_t begin, int64_t rows) {
    up.Add({.a = InputOf(layout, begin, rows),
            .a_rows = InputRowsOf(layout, begin, rows),
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
  if (executor == Executor::kBlockSparse && layout.num_rows() > 0) {
    const BlockMatrix hidden = AsBlocks(layout, saved.hidden, 1);
    SparseFromDense(layout.input, layout.row_token, w.gate_up.forward_all(), Epilogue::kSwiglu, hidden,
                    AsBlocks(layout, saved.gate_up, 2), ctx);
    DenseFromSparse(hidden, w.down.forward_all(), saved.expert_out, ctx);
  }
  up.RunAs(executor, ctx);
  down.RunAs(executor, ctx);
}

void RunExpertsBackward(const MoeLayer& layer, ConstAnyMat x, const ValidRows& valid, const MoeSaved& saved, AnyMat d_out,
                        ConstAnyMat d_shared_out, AnyMat d_input, MatView<float> d_shared_input,
                        const std::optional<WeightGradProblem>& router, ExecContext& ctx) {
  const MoeWeights& w = layer.weights;
  const ExpertLayout& layout = saved.layout;
  const Executor executor = layer.config.executor;
  const bool blocks = executor == Executor::kBlockSparse && layout.num_rows() > 0;
  const auto like = [&](const AnyMat& m) { return AllocMat(m.rows, m.cols, m.dtype, ctx); };
  const AnyMat d_hidden = like(saved.hidden), d_gate_up = like(saved.gate_up);
  const bool shared = !d_shared_out.empty();
  const AnyMat d_shared_hidden = shared ? like(saved.shared_hidden) : AnyMat();
  const AnyMat d_shared_gate_up = shared ? like(saved.shared_gate_up) : AnyMat();

  const int64_t E = layout.num_experts();
  ProblemList<GemmProblem> to_hidden(E + 1, ctx), to_input(E + 1, ctx);
  ProblemList<WeightGradProblem> to_weights(2 * E + 3, ctx);
  ForEachBusyExpert(layer, layout, [&](int64_t e, int64_t begin, int64_t n) {
    const AnyMat d_o = d_out.Rows(begin, n);
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
  if (router) to_weights.Add(*router);

  const BlockMatrix hidden_blocks = blocks ? AsBlocks(layout, d_hidden, 1) : BlockMatrix{};
  if (blocks) SparseFromDense(d_out, {}, w.down.transposed_all(), Epilogue::kStore, hidden_blocks, {}, ctx);
  to_hidden.RunAs(executor, ctx);
  SwigluBackward(saved.gate_up, d_hidden, d_gate_up, ctx);
  if (shared) SwigluBackward(saved.shared_gate_up, d_shared_hidden, d_shared_gate_up, ctx);
  if (blocks) {
    const BlockMatrix d_gate_up_blocks = AsBlocks(layout, d_gate_up, 2);
    DenseFromSparse(d_gate_up_blocks, w.gate_up.transposed_all(), d_input, ctx);
    AddTransposedDenseTimesSparse(d_out, AsBlocks(layout, saved.hidden, 1), w.down.format(), GradientsOf(w.down, ctx), ctx);
    AddTransposedSparseTimesDense(d_gate_up_blocks, layout.input, layout.row_token, w.gate_up.format(),
                                  GradientsOf(w.gate_up, ctx), ctx);
  }
  to_input.RunAs(executor, ctx);
  to_weights.RunAs(executor, ctx);
}

}  // namespace moe
