#include "moe/mixture/experts.h"

#include <algorithm>
#include <cstring>

#include "moe/mixture/zero_computation.h"
#include "moe/ops/activation.h"
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

// Matrices of the rows of one group of experts after the other, in memory for all rows of the widest.
class Shelf {
 public:
  Shelf(int64_t rows, int64_t widest, int64_t matrices, DType format, ExecContext& ctx)
      : format_(format), bytes_(ctx.arena.Alloc<std::byte>(rows * widest * SizeOf(format) + (matrices - 1) * kAlign)) {}
  AnyMat Take(int64_t rows, int64_t cols) {
    const AnyMat out(bytes_.data() + used_, format_, rows, cols, cols);
    used_ += static_cast<size_t>((rows * cols * SizeOf(format_) + kAlign - 1) / kAlign * kAlign);
    return out;
  }

 private:
  static constexpr int64_t kAlign = static_cast<int64_t>(kAlignment);
  DType format_;
  std::span<std::byte> bytes_;
  size_t used_ = 0;
};

int64_t FirstRow(const ExpertLayout& layout, const ExpertWeights& group) {
  return layout.begin[static_cast<size_t>(group.first)];
}
int64_t RowsOf(const ExpertLayout& layout, const ExpertWeights& group) {
  return layout.begin[static_cast<size_t>(group.first + group.count)] - FirstRow(layout, group);
}

// Which matrices the rows of a group need. kept: those that only backward reads, too.
FfnRows WidthsOf(const ExpertSpec& spec, bool kept) {
  const auto matrix = [](int64_t cols) { return AnyMat(nullptr, DType::kF32, 0, cols, cols); };
  if (!spec.is_ffn()) return {};
  const int64_t product = kept || !spec.is_swiglu() ? spec.product_width() : 0;
  const bool deep = spec.depth == 2;
  return {matrix(product), matrix(spec.width), matrix(deep ? product : 0), matrix(deep ? spec.width : 0)};
}

constexpr AnyMat FfnRows::*kMatrices[] = {&FfnRows::gate_up, &FfnRows::hidden, &FfnRows::middle_product, &FfnRows::middle_out};

// The matrices of all groups' rows; `most_rows` in all.
std::span<FfnRows> AllocRows(const MoeLayer& layer, const ExpertLayout& layout, int64_t most_rows, bool kept,
                             ExecContext& ctx) {
  const auto& groups = layer.weights.experts;
  const auto out = ctx.arena.AllocZero<FfnRows>(std::ssize(groups));
  for (AnyMat FfnRows::*matrix : kMatrices) {
    int64_t widest = 0;
    for (const ExpertWeights& group : groups) widest = std::max(widest, (WidthsOf(group.spec, kept).*matrix).cols);
    if (widest == 0) continue;
    Shelf shelf(most_rows, widest, std::ssize(groups), layer.weights.format, ctx);
    for (size_t g = 0; g < groups.size(); ++g) {
      const int64_t cols = (WidthsOf(groups[g].spec, kept).*matrix).cols;
      if (cols > 0) out[g].*matrix = shelf.Take(RowsOf(layout, groups[g]), cols);
    }
  }
  return out;
}

// One FFN at work: an expert's over its rows, or the shared one's over all tokens.
struct Ffn {
  ExpertSpec spec;
  const PackedParameter *gate_up, *middle, *down;
  int64_t index;  // of its matrices
  ConstAnyMat input;
  std::span<const int32_t> input_rows;
  FfnRows rows, d_rows;
  AnyMat out, d_input;
  ConstAnyMat d_out;
};

// What a pass reads and writes beside what is saved; empty where it does not.
struct Pass {
  std::span<const FfnRows> d_rows;  // of the groups
  FfnRows d_shared;
  MatView<float> shared_out, d_shared_input;
  ConstAnyMat d_out, d_shared_out;
  AnyMat d_input;
};

// Calls fn(Ffn) for every expert that has rows and products of its own, then for the shared ones if `shared`.
template <class F>
void ForEachFfn(const MoeLayer& layer, ConstAnyMat x, const ValidRows& valid, const MoeSaved& saved, const Pass& pass,
                bool shared, F&& fn) {
  const MoeWeights& w = layer.weights;
  const ExpertLayout& layout = saved.layout;
  const bool blocks = layer.config.executor == Executor::kBlockSparse;  // one product serves all
  for (size_t g = 0; g < w.experts.size() && !blocks; ++g) {
    const ExpertWeights& group = w.experts[g];
    if (!group.spec.is_ffn()) continue;
    for (int64_t i = 0; i < group.count; ++i) {
      const int64_t begin = layout.begin[static_cast<size_t>(group.first + i)], n = layout.rows_of(group.first + i);
      if (n == 0) continue;
      const int64_t in_group = begin - FirstRow(layout, group);
      fn(Ffn{.spec = group.spec,
             .gate_up = &group.gate_up,
             .middle = &group.middle,
             .down = &group.down,
             .index = i,
             .input = InputOf(layout, begin, n),
             .input_rows = InputRowsOf(layout, begin, n),
             .rows = saved.experts[g].Rows(in_group, n),
             .d_rows = pass.d_rows.empty() ? FfnRows() : pass.d_rows[g].Rows(in_group, n),
             .out = saved.expert_out.Rows(begin, n),
             .d_input = RowsOrEmpty(pass.d_input, begin, n),
             .d_out = pass.d_out.empty() ? pass.d_out : pass.d_out.Rows(begin, n)});
    }
  }
  if (!shared) return;
  fn(Ffn{.spec = {.width = layer.config.shared_width()},
         .gate_up = &w.shared_gate_up,
         .middle = nullptr,
         .down = &w.shared_down,
         .index = 0,
         .input = x,
         .input_rows = valid.rows,
         .rows = saved.shared,
         .d_rows = pass.d_shared,
         .out = pass.shared_out,
         .d_input = pass.d_shared_input,
         .d_out = pass.d_shared_out});
}

// One hidden layer's product: SwiGLU is its epilogue; other activations follow, for all rows of a group at once.
GemmProblem HiddenLayer(const ExpertSpec& spec, ConstAnyMat a, std::span<const int32_t> a_rows, const PackedWeight& weight,
                        AnyMat product, AnyMat hidden) {
  if (!spec.is_swiglu()) return {.a = a, .a_rows = a_rows, .weight = &weight, .c = product};
  return {.a = a, .a_rows = a_rows, .weight = &weight, .epilogue = Epilogue::kSwiglu, .c = hidden, .pre_activation = product};
}

// After the products `product`, of which SwiGLU's are done.
void ActivateGroups(const MoeLayer& layer, const MoeSaved& saved, AnyMat FfnRows::*product, AnyMat FfnRows::*hidden,
                    ExecContext& ctx) {
  for (size_t g = 0; g < saved.experts.size(); ++g) {
    const ExpertSpec& spec = layer.weights.experts[g].spec;
    const FfnRows& rows = saved.experts[g];
    if (!spec.is_swiglu() && !(rows.*product).empty()) {
      Activate(spec.activation, spec.gated, rows.*product, rows.*hidden, ctx);
    }
  }
}
void ActivateGroupsBackward(const MoeLayer& layer, const MoeSaved& saved, std::span<const FfnRows> d_rows,
                            AnyMat FfnRows::*product, AnyMat FfnRows::*hidden, ExecContext& ctx) {
  for (size_t g = 0; g < saved.experts.size(); ++g) {
    const ExpertSpec& spec = layer.weights.experts[g].spec;
    if ((saved.experts[g].*product).empty()) continue;
    ActivateBackward(spec.activation, spec.gated, saved.experts[g].*product, d_rows[g].*hidden, d_rows[g].*product, ctx);
  }
}

int64_t MostFfns(const MoeLayer& layer) {
  return layer.config.router.num_experts + 1;
}

}  // namespace

FfnRows FfnRows::Rows(int64_t begin, int64_t count) const {
  FfnRows out;
  for (AnyMat FfnRows::*matrix : kMatrices) out.*matrix = RowsOrEmpty(this->*matrix, begin, count);
  return out;
}

void AllocExperts(const MoeLayer& layer, const ValidRows& valid, bool training, MoeSaved& saved, ExecContext& ctx) {
  const DType format = layer.weights.format;
  const int64_t Fs = layer.config.shared_width();
  const int64_t most_rows = saved.layout.num_rows() + saved.plan.num_zero;
  saved.experts = AllocRows(layer, saved.layout, most_rows, training, ctx);
  if (training) saved.shared.gate_up = AllocMat(valid.count, 2 * Fs, format, ctx);
  saved.shared.hidden = AllocMat(valid.count, Fs, format, ctx);
  saved.expert_out = AllocExpertRows(saved, saved.input.cols, format, ctx);
}

AnyMat AllocExpertRows(const MoeSaved& saved, int64_t cols, DType format, ExecContext& ctx) {
  const int64_t rows = saved.layout.num_rows();
  return AllocMat(rows + saved.plan.num_zero, cols, format, ctx).Rows(0, rows);
}

void RunExperts(const MoeLayer& layer, ConstAnyMat x, const ValidRows& valid, MoeSaved& saved, MatView<float> shared_out,
                ExecContext& ctx) {
  const ExpertLayout& layout = saved.layout;
  const Executor executor = layer.config.executor;
  ProblemList<GemmProblem> up(MostFfns(layer), ctx), middle(MostFfns(layer), ctx), down(MostFfns(layer), ctx);
  const bool shared = !shared_out.empty() && shared_out.rows > 0;
  ForEachFfn(layer, x, valid, saved, {.shared_out = shared_out}, shared, [&](const Ffn& f) {
    up.Add(HiddenLayer(f.spec, f.input, f.input_rows, f.gate_up->forward(f.index), f.rows.gate_up, f.rows.hidden));
    if (f.spec.depth == 2) {
      middle.Add(HiddenLayer(f.spec, f.rows.hidden, {}, f.middle->forward(f.index), f.rows.middle_product, f.rows.middle_out));
    }
    down.Add({.a = f.rows.last(), .weight = &f.down->forward(f.index), .c = f.out});
  });
  if (executor == Executor::kBlockSparse && layout.num_rows() > 0) {
    const ExpertWeights& w = layer.weights.experts[0];
    const BlockMatrix hidden = AsBlocks(layout, saved.experts[0].hidden, 1);
    SparseFromDense(layout.input, layout.row_token, w.gate_up.forward_all(), Epilogue::kSwiglu, hidden,
                    AsBlocks(layout, saved.experts[0].gate_up, 2), ctx);
    DenseFromSparse(hidden, w.down.forward_all(), saved.expert_out, ctx);
  }
  up.RunAs(executor, ctx);
  ActivateGroups(layer, saved, &FfnRows::gate_up, &FfnRows::hidden, ctx);
  middle.RunAs(executor, ctx);
  ActivateGroups(layer, saved, &FfnRows::middle_product, &FfnRows::middle_out, ctx);
  down.RunAs(executor, ctx);
  for (const ExpertWeights& group : layer.weights.experts) RunZeroComputation(group, saved, ctx);
}

void RunExpertsBackward(const MoeLayer& layer, ConstAnyMat x, const ValidRows& valid, const MoeSaved& saved, AnyMat d_out,
                        ConstAnyMat d_shared_out, AnyMat d_input, MatView<float> d_shared_input,
                        const std::optional<WeightGradProblem>& router, ExecContext& ctx) {
  const ExpertLayout& layout = saved.layout;
  const Executor executor = layer.config.executor;
  const bool blocks = executor == Executor::kBlockSparse && layout.num_rows() > 0, shared = !d_shared_out.empty();
  const auto like = [&](const AnyMat& m) { return AllocMat(m.rows, m.cols, m.dtype, ctx); };
  Pass pass{.d_rows = AllocRows(layer, layout, layout.num_rows() + saved.plan.num_zero, true, ctx),
            .d_shared_input = d_shared_input,
            .d_out = d_out,
            .d_shared_out = d_shared_out,
            .d_input = d_input};
  if (shared) pass.d_shared = {.gate_up = like(saved.shared.gate_up), .hidden = like(saved.shared.hidden)};

  const int64_t most = MostFfns(layer);
  ProblemList<GemmProblem> to_last(most, ctx), to_first(most, ctx), to_input(most, ctx);
  ProblemList<WeightGradProblem> to_weights(3 * most + 1, ctx);
  ForEachFfn(layer, x, valid, saved, pass, shared, [&](const Ffn& f) {
    to_last.Add({.a = f.d_out, .weight = &f.down->transposed(f.index), .c = f.d_rows.last()});
    to_input.Add({.a = f.d_rows.gate_up, .weight = &f.gate_up->transposed(f.index), .c = f.d_input});
    to_weights.Add({.d_y = f.d_out, .x = f.rows.last(), .d_w = f.down->grad(f.index), .format = f.down->format()});
    to_weights.Add({.d_y = f.d_rows.gate_up,
                    .x = f.input,
                    .x_rows = f.input_rows,
                    .d_w = f.gate_up->grad(f.index),
                    .format = f.gate_up->format()});
    if (f.spec.depth < 2) return;
    to_first.Add({.a = f.d_rows.middle_product, .weight = &f.middle->transposed(f.index), .c = f.d_rows.hidden});
    to_weights.Add(
        {.d_y = f.d_rows.middle_product, .x = f.rows.hidden, .d_w = f.middle->grad(f.index), .format = f.middle->format()});
  });
  if (router) to_weights.Add(*router);

  if (blocks) {
    SparseFromDense(d_out, {}, layer.weights.experts[0].down.transposed_all(), Epilogue::kStore,
                    AsBlocks(layout, pass.d_rows[0].hidden, 1), {}, ctx);
  }
  to_last.RunAs(executor, ctx);
  ActivateGroupsBackward(layer, saved, pass.d_rows, &FfnRows::middle_product, &FfnRows::middle_out, ctx);
  to_first.RunAs(executor, ctx);
  ActivateGroupsBackward(layer, saved, pass.d_rows, &FfnRows::gate_up, &FfnRows::hidden, ctx);
  if (shared) SwigluBackward(saved.shared.gate_up, pass.d_shared.hidden, pass.d_shared.gate_up, ctx);
  if (blocks) {
    const ExpertWeights& w = layer.weights.experts[0];
    const BlockMatrix d_gate_up = AsBlocks(layout, pass.d_rows[0].gate_up, 2);
    DenseFromSparse(d_gate_up, w.gate_up.transposed_all(), d_input, ctx);
    AddTransposedDenseTimesSparse(d_out, AsBlocks(layout, saved.experts[0].hidden, 1), w.down.format(),
                                  GradientsOf(w.down, ctx), ctx);
    AddTransposedSparseTimesDense(d_gate_up, layout.input, layout.row_token, w.gate_up.format(), GradientsOf(w.gate_up, ctx),
                                  ctx);
  }
  to_input.RunAs(executor, ctx);
  to_weights.RunAs(executor, ctx);
  for (const ExpertWeights& group : layer.weights.experts) RunZeroComputationBackward(group, saved, d_out, d_input, ctx);
}

}  // namespace moe
