#include "moe/planner/bench_sparse.h"

#include "moe/ops/block_sparse.h"
#include "moe/planner/bench_gemm.h"
#include "moe/planner/bench_operands.h"

namespace moe {
namespace {

constexpr int64_t kBlocks[] = {16, 32, 64, 128};

enum class Product : uint8_t { kSdd, kDsd, kStDd };
struct Kind {
  Product product;
  const char* name;
};
constexpr Kind kKinds[] = {{Product::kSdd, "SDD"}, {Product::kDsd, "DSD"}, {Product::kStDd, "StDD"}};

struct Checkerboard {
  std::vector<int32_t> row_begin = {0}, column;
  Arena arena;  // of the topology
  BlockTopology topology;
  BlockMatrix s;  // [M,N]
  BenchOperands operands;
  ConstAnyMat x;          // [M,K]
  MatView<float> result;  // y [M,K], d_w [N,K]

  Checkerboard(const GemmShape& shape, int64_t block, ExecContext& ctx) {
    for (int64_t i = 0; i < shape.M / block; ++i) {
      for (int64_t j = i % 2; j < shape.N / block; j += 2) column.push_back(static_cast<int32_t>(j));
      row_begin.push_back(static_cast<int32_t>(column.size()));
    }
    ExecContext own{ctx.pool, arena, ctx.kernels};
    topology = MakeTopology(block, shape.N / block, row_begin, column, {}, own);
    s.topology = &topology;
  }
};

std::function<void()> RunOf(const GemmShape& shape, int64_t block, Product product, DType format, ExecContext& ctx) {
  const auto c = std::make_shared<Checkerboard>(shape, block, ctx);
  BenchOperands& o = c->operands;
  const int64_t values = c->s.size();
  if (product == Product::kSdd) {  // x [M,K] with W [N,K]
    c->s.values = o.Outputs(1, values, DType::kF32);
    c->x = o.Activations(shape.M, shape.K, format, ctx);
    o.AddWeight(shape.N, shape.K, format, ctx);
    return [c, &ctx] { SparseFromDense(c->x, {}, c->operands.weights, Epilogue::kStore, c->s, {}, ctx); };
  }
  c->s.values = o.Activations(1, values, format, ctx);
  if (product == Product::kDsd) {  // with W [K,N]
    c->result = o.Zeros(shape.M, shape.K);
    o.AddWeight(shape.K, shape.N, format, ctx);
    return [c, &ctx] { DenseFromSparse(c->s, c->operands.weights, c->result, ctx); };
  }
  c->x = o.Activations(shape.M, shape.K, format, ctx);
  c->result = o.Zeros(shape.N, shape.K);
  return [c, format, &ctx] { AddTransposedSparseTimesDense(c->s, c->x, {}, format, {&c->result, 1}, ctx); };
}

// The product of dense matrices with as many results as the sparse one writes, and as many terms in each.
BenchCase DenseTwin(const GemmShape& s, Product product, DType format) {
  switch (product) {
    case Product::kSdd:
      return DenseCase({s.M / 2, s.N, s.K}, format, nullptr);
    case Product::kDsd:
      return DenseCase({s.M, s.K, s.N / 2}, format, nullptr);
    case Product::kStDd:
      break;
  }
  return WeightGradCase({s.M / 2, s.N, s.K}, format);
}

BenchCase CaseOf(const GemmShape& s, int64_t block, const Kind& kind, DType format) {
  const BenchCase dense = DenseTwin(s, kind.product, format);
  return {.group = "block_sparse",
          .name = fmt::format("{}/checkerboard/{}/b{}/{}x{}x{}", Name(format), kind.name, block, s.M, s.N, s.K),
          .kind = fmt::format("checkerboard, blocks of {}", block),
          .bounds = dense.bounds,
          .reference = {.name = "dense"},
          .memory_bytes = dense.memory_bytes + 4 * (s.M * s.N / 2 + (s.M + s.N) * s.K),
          .prepare = [=, product = kind.product](ExecContext& ctx) {
            BenchRun bench;
            bench.run = RunOf(s, block, product, format, ctx);
            bench.reference = dense.prepare(ctx).run;
            return bench;
          }};
}

}  // namespace

std::vector<BenchCase> CheckerboardCases(const BenchShapes& shapes, DType format) {
  std::vector<BenchCase> out;
  for (const GemmShape& s : shapes.sparse) {
    for (const int64_t block : kBlocks) {
      for (const Kind& kind : kKinds) out.push_back(CaseOf(s, block, kind, format));
    }
  }
  return out;
}

}  // namespace moe
