#include "moe/planner/bench_grouped.h"

#include <algorithm>

#include "moe/mixture/executor.h"
#include "moe/ops/gemm.h"
#include "moe/planner/bench_operands.h"

namespace moe {
namespace {

constexpr int64_t kMinRowsPerExpert = 16;
constexpr int64_t kGroupedRows = 64;  // an expert, at least, for the bars of grouped products

// One of the products of a layer: y [rows,N] = x W^T per expert, or d_w [N,K] += d_y^T x.
struct Part {
  const char* name;
  int64_t N, K;
  Epilogue epilogue = Epilogue::kStore;
  bool gathered = false;     // rows of x are tokens
  bool weight_grad = false;  // d_w
};

Part GateUp(const MoeShape& s) {
  return {.name = "gate_up", .N = 2 * s.F, .K = s.D, .epilogue = Epilogue::kSwiglu, .gathered = true};
}
Part Down(const MoeShape& s) {
  return {.name = "down", .N = s.D, .K = s.F};
}
Part BackwardGateUp(const MoeShape& s) {
  return {.name = "dX_gate_up", .N = s.D, .K = 2 * s.F};
}
Part BackwardDown(const MoeShape& s) {
  return {.name = "dX_down", .N = s.F, .K = s.D};
}
Part GradGateUp(const MoeShape& s) {
  return {.name = "dW_gate_up", .N = 2 * s.F, .K = s.D, .gathered = true, .weight_grad = true};
}
Part GradDown(const MoeShape& s) {
  return {.name = "dW_down", .N = s.D, .K = s.F, .weight_grad = true};
}

int64_t OutputColumns(const Part& p) {
  return p.epilogue == Epilogue::kSwiglu ? p.N / 2 : p.N;
}

int64_t MemoryOf(const MoeShape& s, const Part& p, DType format, int64_t rows) {
  const int64_t weights = p.weight_grad ? 4 * s.E * p.N * p.K : s.E * PackedWeight::Bytes(format, p.N, p.K);
  return weights + 8 * rows * (p.N + p.K) + 8 * p.N * p.K;
}

// What runs share and keep.
struct Work {
  BenchOperands operands;
  std::shared_ptr<const BenchRouting> routing;  // null: all rows are one expert's
  std::vector<GemmProblem> products;
  std::vector<WeightGradProblem> gradients;
};

std::function<void()> RunOf(const std::shared_ptr<Work>& work, ExecContext& ctx) {
  return [work, &ctx] {
    if (!work->products.empty()) GroupedGemm(work->products, ctx);
    if (!work->gradients.empty()) GroupedWeightGrad(work->gradients, ctx);
  };
}

// One product per expert that has rows. begin [E+1]; x_rows: token of each row, empty: x holds the rows themselves.
void AddProducts(Work& work, const Part& p, DType format, std::span<const int32_t> begin, std::span<const int32_t> x_rows,
                 ConstAnyMat x, ExecContext& ctx) {
  const int64_t rows = begin.back(), E = static_cast<int64_t>(begin.size()) - 1;
  BenchOperands& o = work.operands;
  const bool rounds = p.epilogue == Epilogue::kSwiglu;  // for the product that comes next
  const AnyMat y =
      p.weight_grad ? o.Activations(rows, p.N, format, ctx) : o.Outputs(rows, OutputColumns(p), rounds ? format : DType::kF32);
  o.weights.reserve(o.weights.size() + static_cast<size_t>(E));  // problems point into it
  for (int64_t e = 0; e < E; ++e) {
    const int64_t first = begin[static_cast<size_t>(e)], n = begin[static_cast<size_t>(e) + 1] - first;
    if (n == 0) continue;
    const auto gather = x_rows.empty() ? x_rows : x_rows.subspan(static_cast<size_t>(first), static_cast<size_t>(n));
    const ConstAnyMat a = x_rows.empty() ? x.Rows(first, n) : x;
    if (p.weight_grad) {
      work.gradients.push_back({.d_y = y.Rows(first, n), .x = a, .x_rows = gather, .d_w = o.Zeros(p.N, p.K), .format = format});
    } else {
      o.AddWeight(p.N, p.K, format, ctx);
      work.products.push_back(
          {.a = a, .a_rows = gather, .weight = &o.weights.back(), .epilogue = p.epilogue, .c = y.Rows(first, n)});
    }
  }
}

std::function<void()> GroupedRun(const MoeShape& s, const Part& p, BenchLoads loads, DType format, ExecContext& ctx) {
  const auto work = std::make_shared<Work>();
  work->routing = MakeBenchRouting(s, loads, ctx);
  const DispatchPlan& plan = work->routing->plan;
  const AnyMat x = work->operands.Activations(p.gathered ? s.T : plan.num_rows(), p.K, format, ctx);
  AddProducts(*work, p, format, plan.expert_begin, p.gathered ? plan.row_token : std::span<const int32_t>{}, x, ctx);
  return RunOf(work, ctx);
}

// `rows` rows through one weight, or in buckets of `bucket` rows through E.
std::function<void()> EvenRun(const Part& p, int64_t buckets, int64_t bucket, DType format, ExecContext& ctx) {
  const auto work = std::make_shared<Work>();
  std::vector<int32_t> begin;
  for (int64_t e = 0; e <= buckets; ++e) begin.push_back(static_cast<int32_t>(e * bucket));
  AddProducts(*work, p, format, begin, {}, work->operands.Activations(buckets * bucket, p.K, format, ctx), ctx);
  return RunOf(work, ctx);
}
std::function<void()> DenseRun(const Part& p, int64_t rows, DType format, ExecContext& ctx) {
  return EvenRun(p, 1, rows, format, ctx);
}

BenchCase Forward(const MoeShape& s, const Part& p, BenchLoads loads, DType format) {
  const int64_t rows = s.T * s.k;
  return {.group = "grouped",
          .name = fmt::format("{}/{}/{}/{}", Name(format), Name(loads), p.name, NameOf(s)),
          .kind = fmt::format("{}, {}", Name(loads), KindOfRows(s, kGroupedRows)),
          .bounds = {{PeakOf(format), GemmFlop(rows, p.N, p.K)}},
          .reference = {.name = "dense"},
          .memory_bytes = MemoryOf(s, p, format, rows),
          .prepare = [=](ExecContext& ctx) {
            BenchRun bench;
            bench.run = GroupedRun(s, p, loads, format, ctx);
            bench.reference = DenseRun(p, rows, format, ctx);
            return bench;
          }};
}

BenchCase Backward(const MoeShape& s, const Part& p, const Part& forward, DType format) {
  const int64_t rows = s.T * s.k;
  return {.group = "backward",
          .name = fmt::format("{}/experts/{}/{}", Name(format), p.name, NameOf(s)),
          .kind = "products of experts, " + KindOfRows(s, kManyRows),
          .bounds = {{PeakOf(format), GemmFlop(rows, p.N, p.K)}},
          .reference = {.name = "forward"},
          .memory_bytes = MemoryOf(s, p, format, rows) + MemoryOf(s, forward, format, rows),
          .prepare = [=](ExecContext& ctx) {
            BenchRun bench;
            bench.run = GroupedRun(s, p, BenchLoads::kBalanced, format, ctx);
            bench.reference = GroupedRun(s, forward, BenchLoads::kBalanced, format, ctx);
            return bench;
          }};
}

// Buckets of the largest Zipf load, beside the ragged products of the same loads, row by row.
BenchCase Padded(const MoeShape& s, const Part& p, DType format) {
  const auto loads = ExpertLoads(s, BenchLoads::kZipf);
  const int64_t rows = s.T * s.k, bucket = *std::max_element(loads.begin(), loads.end());
  return {.group = "grouped",
          .name = fmt::format("{}/padded/{}/{}", Name(format), p.name, NameOf(s)),
          .kind = "padded, " + KindOfRows(s, kGroupedRows),
          .bounds = {{PeakOf(format), GemmFlop(s.E * bucket, p.N, p.K)}},
          .reference = {.name = "grouped, row by row", .work = GemmFlop(rows, p.N, p.K)},
          .memory_bytes = MemoryOf(s, p, format, s.E * bucket) + MemoryOf(s, p, format, rows),
          .prepare = [=](ExecContext& ctx) {
            BenchRun bench;
            bench.run = EvenRun(p, s.E, bucket, format, ctx);
            bench.reference = GroupedRun(s, p, BenchLoads::kZipf, format, ctx);
            return bench;
          }};
}

// The six products of a block-sparse layer.
enum class Six : uint8_t { kUp, kDown, kBackDown, kBackUp, kGradDown, kGradUp };

// Operands of one of them over the blocks of a balanced layer.
struct SparseWork {
  BenchOperands operands;
  std::shared_ptr<const BenchRouting> routing;
  Arena arena;  // of the layout
  ExpertLayout layout;
  BlockMatrix s;
  AnyMat read, tokens;                    // [rows,D], [T,D]
  MatView<float> written;                 // [rows,D]
  std::vector<MatView<float>> gradients;  // [E]
};

std::function<void()> SparseRun(const MoeShape& s, const Part& p, Six which, DType format, ExecContext& ctx) {
  const auto w = std::make_shared<SparseWork>();
  BenchOperands& o = w->operands;
  w->routing = MakeBenchRouting(s, BenchLoads::kBalanced, ctx);
  ExecContext own{ctx.pool, w->arena, ctx.kernels};
  w->tokens = o.Activations(s.T, s.D, format, ctx);
  w->layout = BlockSparseLayout(w->routing->plan, s.F, w->tokens, own);
  const int64_t rows = w->layout.num_rows();
  w->read = o.Activations(rows, s.D, format, ctx), w->written = o.Zeros(rows, s.D);
  const bool both = which == Six::kBackUp || which == Six::kGradUp;    // gate and up
  const DType dtype = which == Six::kBackDown ? DType::kF32 : format;  // a gradient before its activation's
  const AnyMat values = o.Activations(rows, both ? 2 * s.F : s.F, dtype, ctx);
  w->s = {
      .topology = &w->layout.topology, .values = {values.data, dtype, 1, values.size(), values.size()}, .width = both ? 2 : 1};
  for (int64_t e = 0; e < s.E; ++e) {
    if (p.weight_grad) {
      w->gradients.push_back(o.Zeros(p.N, p.K));
    } else {
      o.AddWeight(p.N, p.K, format, ctx);
    }
  }
  return [w, which, format, &ctx] {
    const std::span<const PackedWeight> weights = w->operands.weights;
    const std::span<const int32_t> row_token = w->layout.row_token;
    switch (which) {
      case Six::kUp:
        return SparseFromDense(w->tokens, row_token, weights, Epilogue::kSwiglu, w->s, {}, ctx);
      case Six::kDown:
      case Six::kBackUp:
        return DenseFromSparse(w->s, weights, w->written, ctx);
      case Six::kBackDown:
        return SparseFromDense(w->read, {}, weights, Epilogue::kStore, w->s, {}, ctx);
      case Six::kGradDown:
        return AddTransposedDenseTimesSparse(w->read, w->s, format, w->gradients, ctx);
      case Six::kGradUp:
        return AddTransposedSparseTimesDense(w->s, w->tokens, row_token, format, w->gradients, ctx);
    }
  };
}

BenchCase BlockSparse(const MoeShape& s, Six which, const char* name, const Part& p, DType format) {
  const int64_t rows = s.T * s.k;
  return {.group = "block_sparse",
          .name = fmt::format("{}/{}/{}", Name(format), name, NameOf(s)),
          .bounds = {{PeakOf(format), GemmFlop(rows, p.N, p.K)}},
          .reference = {.name = "dense"},
          .memory_bytes = 2 * MemoryOf(s, p, format, rows),
          .prepare = [=](ExecContext& ctx) {
            BenchRun bench;
            bench.run = SparseRun(s, p, which, format, ctx);
            bench.reference = DenseRun(p, rows, format, ctx);
            return bench;
          }};
}

}  // namespace

std::string NameOf(const MoeShape& s) {
  return fmt::format("T{}.D{}.F{}.E{}.k{}", s.T, s.D, s.F, s.E, s.k);
}

std::string KindOfRows(const MoeShape& s, int64_t rows) {
  return s.T * s.k >= rows * s.E ? fmt::format("{} rows an expert and more", rows)
                                 : fmt::format("fewer than {} rows an expert", rows);
}

bool ManyRowsPerExpert(const MoeShape& s) {
  return s.T * s.k >= kMinRowsPerExpert * s.E;
}

std::vector<BenchCase> GroupedCases(const BenchShapes& shapes, DType format) {
  std::vector<BenchCase> out, padded, backward;
  for (const BenchLoads loads : {BenchLoads::kBalanced, BenchLoads::kZipf}) {
    for (const MoeShape& s : shapes.moe) {
      if (!ManyRowsPerExpert(s)) continue;
      for (const Part& p : {GateUp(s), Down(s)}) {
        out.push_back(Forward(s, p, loads, format));
        if (loads == BenchLoads::kZipf) padded.push_back(Padded(s, p, format));
      }
    }
  }
  for (const MoeShape& s : shapes.moe) {
    if (!ManyRowsPerExpert(s)) continue;
    for (const Part& p : {BackwardGateUp(s), GradGateUp(s)}) backward.push_back(Backward(s, p, GateUp(s), format));
    for (const Part& p : {BackwardDown(s), GradDown(s)}) backward.push_back(Backward(s, p, Down(s), format));
  }
  for (auto* more : {&padded, &backward}) std::move(more->begin(), more->end(), std::back_inserter(out));
  return out;
}

std::vector<BenchCase> BlockSparseCases(const BenchShapes& shapes, DType format) {
  std::vector<BenchCase> out;
  for (const MoeShape& s : shapes.moe) {
    if (!ManyRowsPerExpert(s)) continue;
    out.push_back(BlockSparse(s, Six::kUp, "gate_up=SDD", GateUp(s), format));
    out.push_back(BlockSparse(s, Six::kDown, "down=DSD", Down(s), format));
    out.push_back(BlockSparse(s, Six::kBackDown, "dX_down=SDDt", BackwardDown(s), format));
    out.push_back(BlockSparse(s, Six::kBackUp, "dX_gate_up=DSDt", BackwardGateUp(s), format));
    out.push_back(BlockSparse(s, Six::kGradDown, "dW_down=DtSD", GradDown(s), format));
    out.push_back(BlockSparse(s, Six::kGradUp, "dW_gate_up=StDD", GradGateUp(s), format));
  }
  return out;
}

}  // namespace moe
