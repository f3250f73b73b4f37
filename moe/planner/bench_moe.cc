#include "moe/planner/bench_moe.h"

#include <algorithm>

#include "moe/mixture/combine.h"
#include "moe/mixture/moe_layer.h"
#include "moe/planner/bench_grouped.h"
#include "moe/planner/bench_operands.h"
#include "moe/planner/random_weights.h"
#include "moe/planner/step_cost.h"

namespace moe {
namespace {

constexpr int64_t kLayerBytes = int64_t{4} << 30;  // of all layers of a decode together, unless one has more
constexpr int64_t kMaxLayers = 256;
constexpr int64_t kInputs = 8;  // of a decode, at least: other tokens, other experts
constexpr int64_t kMaxDecodeTokens = 256;

// What a run with one thread needs.
struct OneThread {
  ThreadPool pool{1};
  Arena arena;
};

// A layer with random weights, without masters.
struct BenchLayer {
  ParameterStore store{/*allocate=*/false};
  MoeLayer layer;
  AlignedBytes gate_up, down;
};

AlignedBytes GiveStorage(PackedParameter& parameter, bool training, uint64_t seed, ExecContext& ctx) {
  const auto size = static_cast<size_t>(parameter.StorageBytes(training));
  AlignedBytes bytes = AllocateAligned(size);
  FillRandomWeights({bytes.get(), size}, seed, ctx);
  parameter.UseStorage({bytes.get(), size}, training);
  return bytes;
}

std::shared_ptr<BenchLayer> MakeLayer(const MoeShape& s, DType format, Executor executor, bool training, uint64_t seed,
                                      ExecContext& ctx) {
  auto out = std::make_shared<BenchLayer>();
  MoeConfig& config = out->layer.config;
  config = {.router = {.num_experts = s.E, .top_k = s.k, .normalize = s.k > 1}, .expert_width = s.F, .executor = executor};
  MoeWeights& w = out->layer.weights;
  w = AddMoeWeights(config, s.D, "", format, out->store);
  out->gate_up = GiveStorage(w.experts[0].gate_up, training, seed, ctx);
  out->down = GiveStorage(w.experts[0].down, training, seed + 1, ctx);
  Tensor router({s.E, s.D});
  FillRandomValues(router.span(), 0.02f, seed + 2, ctx);
  w.gate.first.PackOne(0, router.mat(), training, ctx);
  if (training) out->store.AllocateGradients();
  return out;
}

double RouterFlop(const MoeShape& s) {
  return GemmFlop(s.T, s.E, s.D);
}
double ExpertFlop(const MoeShape& s) {
  return GemmFlop(s.T * s.k, 3 * s.F, s.D);
}

int64_t ExpertBytes(const MoeShape& s, DType format) {
  return PackedWeight::Bytes(format, 2 * s.F, s.D) + PackedWeight::Bytes(format, s.D, s.F);
}

int64_t MemoryOf(const MoeShape& s, DType format, bool training) {
  const int64_t rows = s.T * s.k, values = s.E * 3 * s.D * s.F;
  const int64_t weights = s.E * ExpertBytes(s, format) * (training ? 2 : 1) + (training ? 4 * values : 0);
  return weights + 4 * rows * (2 * s.D + 3 * s.F) * (training ? 3 : 1) + 4 * s.T * s.D * 4;
}

// What runs share and keep: a layer, its input and output.
struct Work {
  std::shared_ptr<BenchLayer> owner;
  BenchOperands operands;
  MatView<float> x, y, d_y, d_x;
  Arena arena;  // of saved
  MoeSaved saved;

  const MoeLayer& layer() const { return owner->layer; }
};

void Check(const Status& status) {
  MOE_CHECK(status.has_value(), "{}", status.error().Message());
}

std::shared_ptr<Work> MakeWork(const MoeShape& s, DType format, Executor executor, bool training, ExecContext& ctx) {
  auto w = std::make_shared<Work>();
  w->owner = MakeLayer(s, format, executor, training, 1, ctx);
  w->x = w->operands.Matrix(s.T, s.D, ctx);
  w->y = w->operands.Zeros(s.T, s.D);
  if (!training) return w;
  w->d_y = w->operands.Matrix(s.T, s.D, ctx);
  w->d_x = w->operands.Zeros(s.T, s.D);
  ExecContext own{ctx.pool, w->arena, ctx.kernels};
  Check(w->layer().Forward(w->x, {}, w->y, &w->saved, nullptr, nullptr, own));
  return w;
}

std::function<void()> ForwardOf(const std::shared_ptr<Work>& w, ExecContext& ctx) {
  return [w, &ctx] { Check(w->layer().Forward(w->x, {}, w->y, nullptr, nullptr, nullptr, ctx)); };
}

// The forward pass that keeps what backward needs.
std::function<void()> TrainingForwardOf(const std::shared_ptr<Work>& w, ExecContext& ctx) {
  return [w, &ctx] {
    Arena::Scope scope(ctx.arena);
    MoeSaved saved;
    Check(w->layer().Forward(w->x, {}, w->y, &saved, nullptr, nullptr, ctx));
  };
}

std::function<void()> BackwardOf(const std::shared_ptr<Work>& w, ExecContext& ctx) {
  return [w, &ctx] { w->layer().Backward(w->x, w->saved, w->d_y, 1.0f, w->d_x, ctx); };
}

// All of the layer but the experts.
std::function<void()> RouterOf(const std::shared_ptr<Work>& w, ExecContext& ctx) {
  return [w, &ctx] {
    Arena::Scope scope(ctx.arena);
    const MoeLayer& layer = w->layer();
    const int64_t T = w->x.rows, E = layer.config.router.num_experts;
    const MatView<float> logits{ctx.arena.Alloc<float>(T * E).data(), T, E};
    LinearForward(layer.weights.gate.first, w->x, logits, Epilogue::kStore, ctx);
    RouterSaved saved{.probs = logits};
    const Result<Routing> routing = Route(layer.config.router, {.logits = logits}, &saved, ctx);
    MOE_CHECK(routing.has_value(), "{}", routing.error().Message());
    const DispatchPlan plan = BuildDispatchPlan(*routing, E, {}, ctx);
    Combine(*routing, plan.slot_row, routing->gate, w->saved.expert_out, {}, {}, w->y, ctx);
  };
}

// One SwiGLU FFN whose width is that of the k experts of a token.
std::function<void()> DenseFfn(const MoeShape& s, DType format, ExecContext& ctx) {
  const auto o = std::make_shared<BenchOperands>();
  const AnyMat x = o->Activations(s.T, s.D, format, ctx), hidden = o->Outputs(s.T, s.k * s.F, format);
  const MatView<float> y = o->Zeros(s.T, s.D);
  o->AddWeight(2 * s.k * s.F, s.D, format, ctx);
  o->AddWeight(s.D, s.k * s.F, format, ctx);
  return [=, &ctx] {
    Gemm({.a = x, .weight = &o->weights[0], .epilogue = Epilogue::kSwiglu, .c = hidden}, ctx);
    Gemm({.a = hidden, .weight = &o->weights[1], .c = y}, ctx);
  };
}

struct ExecutorName {
  Executor executor;
  const char* name;
};
constexpr ExecutorName kExecutors[] = {{Executor::kGrouped, "grouped"},
                                       {Executor::kLoop, "loop"},
                                       {Executor::kPadded, "padded"},
                                       {Executor::kBlockSparse, "block-sparse"}};

BenchCase Forward(const MoeShape& s, const ExecutorName& e, DType format) {
  const bool grouped = e.executor == Executor::kGrouped;
  return {.group = e.executor == Executor::kBlockSparse ? "block_sparse" : "grouped",
          .name = fmt::format("{}/layer/{}/{}", Name(format), e.name, NameOf(s)),
          .kind = fmt::format("layer, {}", e.name),
          .bounds = {{PeakOf(format), RouterFlop(s) + ExpertFlop(s)}},
          .reference = {.name = grouped ? "dense" : "grouped"},
          .memory_bytes = 2 * MemoryOf(s, format, false),
          .prepare = [=, executor = e.executor](ExecContext& ctx) {
            const auto run = ForwardOf(MakeWork(s, format, executor, false, ctx), ctx);
            const auto twin =
                grouped ? DenseFfn(s, format, ctx) : ForwardOf(MakeWork(s, format, Executor::kGrouped, false, ctx), ctx);
            return BenchRun{.run = run, .reference = twin};
          }};
}

BenchCase Backward(const MoeShape& s, const ExecutorName& e, DType format) {
  const double forward = RouterFlop(s) + ExpertFlop(s);
  return {.group = "backward",
          .name = fmt::format("{}/layer/{}/{}", Name(format), e.name, NameOf(s)),
          .kind = fmt::format("layer, {}, {}", e.name, KindOfRows(s, kManyRows)),
          .bounds = {{PeakOf(format), 2 * forward}},
          .reference = {.name = "forward", .work = forward},
          .memory_bytes = 2 * MemoryOf(s, format, true),
          .prepare = [=, executor = e.executor](ExecContext& ctx) {
            const auto work = MakeWork(s, format, executor, true, ctx);
            return BenchRun{.run = BackwardOf(work, ctx), .reference = TrainingForwardOf(work, ctx)};
          }};
}

BenchCase RouterShare(const MoeShape& s, DType format) {
  return {.group = "router",
          .name = fmt::format("{}/layer/{}", Name(format), NameOf(s)),
          .bounds = {{PeakOf(format), RouterFlop(s) + ExpertFlop(s)}},
          .reference = {.name = "router, top-k, plan, combine", .is_part = true},
          .memory_bytes = 2 * MemoryOf(s, format, true),
          .prepare = [=](ExecContext& ctx) {
            const auto work = MakeWork(s, format, Executor::kGrouped, true, ctx);
            return BenchRun{.run = ForwardOf(work, ctx), .reference = RouterOf(work, ctx)};
          }};
}

// The same layer with all threads and with one, each held against the peak of its own threads.
BenchCase Scaling(const MoeShape& s, DType format) {
  return {.group = "grouped",
          .name = fmt::format("{}/scaling/{}", Name(format), NameOf(s)),
          .kind = "scaling",
          .bounds = {{PeakOf(format), RouterFlop(s) + ExpertFlop(s)}},
          .reference = {.name = "one thread"},
          .memory_bytes = 2 * MemoryOf(s, format, false),
          .prepare = [=](ExecContext& ctx) {
            const auto work = MakeWork(s, format, Executor::kGrouped, false, ctx);
            const auto one = std::make_shared<OneThread>();
            return BenchRun{.run = ForwardOf(work, ctx),
                            .reference =
                                [=, &kernels = ctx.kernels] {
                                  ExecContext own{one->pool, one->arena, kernels};
                                  Check(work->layer().Forward(work->x, {}, work->y, nullptr, nullptr, nullptr, own));
                                },
                            .reference_pool = {one, &one->pool}};
          }};
}

// Layers in turn, each with tokens of its own.
struct DecodeWork {
  std::vector<std::shared_ptr<BenchLayer>> layers;
  BenchOperands operands;
  std::vector<MatView<float>> x;
  MatView<float> y;
  size_t next = 0;

  const MoeLayer& layer(size_t i) const { return layers[i % layers.size()]->layer; }
};

BenchRun Decode(const MoeShape& s, DType format, int64_t cold_bytes, ExecContext& ctx) {
  const auto w = std::make_shared<DecodeWork>();
  const int64_t layer_bytes = s.E * ExpertBytes(s, format);
  const double touched = UniformDistinctExperts(s.E, s.k, s.T) * static_cast<double>(ExpertBytes(s, format));
  const int64_t most = std::clamp<int64_t>(kLayerBytes / layer_bytes, 1, kMaxLayers);
  const int64_t count = std::min(most, ColdCount(static_cast<int64_t>(touched), cold_bytes));
  for (int64_t i = 0; i < count; ++i) {
    w->layers.push_back(MakeLayer(s, format, Executor::kGrouped, false, static_cast<uint64_t>(3 * i + 1), ctx));
  }
  const int64_t inputs = std::max(count, kInputs);
  w->y = w->operands.Zeros(s.T, s.D);
  double distinct = 0;
  for (int64_t i = 0; i < inputs; ++i) {
    w->x.push_back(w->operands.Matrix(s.T, s.D, ctx));
    Arena::Scope scope(ctx.arena);
    RouterAux aux;
    Check(w->layer(static_cast<size_t>(i)).Forward(w->x.back(), {}, w->y, nullptr, &aux, nullptr, ctx));
    distinct += static_cast<double>(std::ranges::count_if(aux.tokens_per_expert, [](int64_t n) { return n > 0; }));
  }
  const double bytes = distinct / static_cast<double>(inputs) * static_cast<double>(ExpertBytes(s, format)) +
                       static_cast<double>(PackedWeight::Bytes(DType::kF32, s.E, s.D));
  return {.run =
              [w, &ctx] {
                const size_t i = w->next++ % w->x.size();
                Check(w->layer(i).Forward(w->x[i], {}, w->y, nullptr, nullptr, nullptr, ctx));
              },
          .bounds = {{Ceiling::kReadChunks, bytes}, {PeakOf(format), RouterFlop(s) + ExpertFlop(s)}}};
}

}  // namespace

std::vector<BenchCase> MoeLayerCases(const BenchShapes& shapes, DType format) {
  std::vector<BenchCase> out;
  for (const MoeShape& s : shapes.moe) {
    if (!ManyRowsPerExpert(s)) continue;
    for (const ExecutorName& e : kExecutors) {
      out.push_back(Forward(s, e, format));
      out.push_back(Backward(s, e, format));
    }
    out.push_back(RouterShare(s, format));
    out.push_back(Scaling(s, format));
  }
  return out;
}

std::vector<BenchCase> MoeDecodeCases(const BenchShapes& shapes, DType format) {
  std::vector<MoeShape> decodes;
  for (MoeShape s : shapes.moe) {
    for (s.T = 1; s.T <= kMaxDecodeTokens; s.T *= 2) {
      if (std::ranges::find(decodes, s) == decodes.end()) decodes.push_back(s);
    }
  }
  std::vector<BenchCase> out;
  for (const MoeShape& s : decodes) {
    const int64_t layer = s.E * ExpertBytes(s, format);
    out.push_back({.group = "decode",
                   .name = fmt::format("{}/{}", Name(format), NameOf(s)),
                   .kind = s.T == 1 ? "1 token" : "2 tokens and more",
                   .bounds = {{Ceiling::kReadChunks, static_cast<double>(layer)}},
                   .memory_bytes = std::max(kLayerBytes, layer),
                   .prepare = [=, cold = shapes.cold_bytes](ExecContext& ctx) { return Decode(s, format, cold, ctx); }});
  }
  return out;
}

}  // namespace moe
