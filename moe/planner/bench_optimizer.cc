#include "moe/planner/bench_optimizer.h"

#include <algorithm>
#include <deque>
#include <optional>

#include "moe/ops/optimizer_step.h"
#include "moe/planner/bench_grouped.h"
#include "moe/planner/random_weights.h"

namespace moe {
namespace {

// Gradients are 0 after the first run; moments that hardly shrink stay normal numbers for as many runs as there may be.
constexpr AdamwStep kStep = {.lr = 1e-5f,
                             .beta1 = 0.99999f,
                             .beta2 = 0.99999f,
                             .epsilon = 1e-8f,
                             .weight_decay = 0,
                             .correction1 = 1,
                             .correction2 = 1,
                             .grad_scale = 1};
constexpr float kWeightDecay = 1e-3f;

using Shape = std::vector<int64_t>;

int64_t ValuesOf(const Shape& shape) {
  int64_t n = 1;
  for (const int64_t extent : shape) n *= extent;
  return n;
}

// A matrix of so many values, with rows like those of a model.
Shape MatrixOf(int64_t values) {
  int64_t columns = 1024;
  while (values % columns != 0) columns /= 2;
  return {values / columns, columns};
}

struct Work {
  ParameterStore store;
  std::deque<PackedParameter> packed;  // tensors point into it
  std::deque<Tensor> moments;
  std::vector<AdamwTensor> tensors;
};

BenchCase Case(const std::string& name, const std::vector<Shape>& shapes, std::optional<DType> packs) {
  int64_t values = 0;
  for (const Shape& shape : shapes) values += ValuesOf(shape);
  const int64_t pack_bytes = packs ? 2 * SizeOf(*packs) : 0;  // written
  // Value, gradient and two moments are read and written, as the probe does it; it writes no packs, so that theirs are counted
  // as if they went at its rate.
  return {.group = "adamw",
          .name = name,
          .kind = packs ? "packs" : "no packs",
          .bounds = {{Ceiling::kOptimizerStream, static_cast<double>(values * (4 * 8 + pack_bytes))}},
          .memory_bytes = values * (4 * 4 + pack_bytes),
          .prepare = [=](ExecContext& ctx) { return BenchRun{.run = AdamwOver(shapes, packs, ctx)}; }};
}

}  // namespace

std::function<void()> AdamwOver(const std::vector<Shape>& shapes, std::optional<DType> packs, ExecContext& ctx) {
  const auto w = std::make_shared<Work>();
  for (const Shape& shape : shapes) {
    Parameter& p = w->store.Add(fmt::format("{}", w->tensors.size()), shape, true, shape.size() == 3 ? shape[0] : 0);
    FillRandomValues(p.value.span(), 0.02f, 1, ctx);
    p.grad = Tensor(shape);
    FillRandomValues(p.grad.span(), 0.01f, 2, ctx);
    Tensor &m = w->moments.emplace_back(shape), &v = w->moments.emplace_back(shape);
    FillRandomValues(m.span(), 0.01f, 3, ctx);
    std::ranges::fill(v.span(), 1e-4f);
    w->tensors.push_back({.parameter = &p, .m = m.span(), .v = v.span(), .weight_decay = kWeightDecay});
    if (!packs) continue;
    w->packed.emplace_back(&p, *packs).Repack(/*with_transposed=*/true, ctx);
    w->tensors.back().packed = &w->packed.back();
  }
  return [w, &ctx] { AdamwPass(kStep, w->tensors, ctx); };
}

std::vector<BenchCase> OptimizerCases(const BenchShapes& shapes, DType format) {
  std::vector<BenchCase> out;
  for (const int64_t values : shapes.adamw) {
    out.push_back(Case(fmt::format("{}/no_packs/{}", Name(format), values), {MatrixOf(values)}, std::nullopt));
  }
  for (const int64_t values : shapes.adamw) {
    out.push_back(Case(fmt::format("{}/packs/{}", Name(format), values), {MatrixOf(values)}, format));
  }
  std::vector<MoeShape> seen;  // T does not matter
  for (MoeShape s : shapes.moe) {
    s.T = s.k = 1;
    if (std::ranges::find(seen, s) != seen.end()) continue;
    seen.push_back(s);
    out.push_back(Case(fmt::format("{}/experts/D{}.F{}.E{}", Name(format), s.D, s.F, s.E),
                       {{s.E, 2 * s.F, s.D}, {s.E, s.D, s.F}}, format));
  }
  return out;
}

}  // namespace moe
