#include "moe/planner/step_ops.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "moe/base/check.h"
#include "moe/ops/chunks.h"
#include "moe/planner/bench_optimizer.h"
#include "moe/planner/step_cost.h"
#include "moe/tensor/packed_weight.h"

namespace moe {
namespace {

constexpr double kF32 = 4;

double D(int64_t n) {
  return static_cast<double>(n);
}

// The walk. Every method is a line of the model's own walk.
struct Walk {
  const StepModel& model;
  const Step& step;
  StepOps out = {};
  StepPart part = StepPart::kOther;
  double T = 0;            // rows of the step
  double weights = 0;      // bytes of all weights, read once a step
  double saved = 0;        // bytes that forward keeps for backward
  double activations = 0;  // bytes of a layer's rows on their way
  bool training = false;
  size_t layer_at = 0;
  std::vector<double> last_chances = {};
  std::vector<RowsOfMatrices> last_rows = {};

  const ModelConfig& c() const { return model.config; }
  double WeightSize() const { return model.weight_bytes > 0 ? model.weight_bytes : D(SizeOf(model.format)); }
  double ActivationSize() const { return D(SizeOf(model.format)); }

  double MatrixBytes(DType format, int64_t N, int64_t K) const {
    if (part != StepPart::kRouter && model.weight_bytes > 0) return D(N) * D(K) * model.weight_bytes;
    return D(PackedWeight::Bytes(format, N, K));
  }

  void Add(StepOp op) {
    op.part = part;
    out.ops.push_back(std::move(op));
  }
  // One list of products: matrices [N,K] with rows each.
  void Product(ProductKind kind, DType format, int64_t N, int64_t K, std::vector<RowsOfMatrices> rows, bool uneven = false) {
    double matrices = 0, all_rows = 0;
    for (const RowsOfMatrices& m : rows) matrices += m.matrices, all_rows += m.matrices * m.rows;
    const double bytes = matrices * MatrixBytes(format, N, K);
    const double reuse = weights + activations + (training ? saved : 0);
    Add({.op = ProductOp{.format = format,
                         .kind = kind,
                         .N = D(N),
                         .K = D(K),
                         .bytes = bytes,
                         .reuse_bytes = reuse,
                         .row_bytes = all_rows * (D(K) + D(N)) * D(SizeOf(kind == ProductKind::kLinear ? DType::kF32 : format)),
                         .row_reuse_bytes = training ? saved : activations},
         .bytes = bytes,
         .flop = 2 * all_rows * D(N) * D(K),
         .rows = std::move(rows),
         .uneven = uneven});
  }
  void Dense(ProductKind kind, int64_t N, int64_t K, double rows) { Product(kind, model.format, N, K, {{1, rows}}); }
  // d_w [N,K] of each: read and written back, with the rows of both operands.
  void Gradient(DType format, int64_t N, int64_t K, std::vector<RowsOfMatrices> rows, bool uneven = false) {
    double matrices = 0, all_rows = 0;
    for (const RowsOfMatrices& m : rows) matrices += m.matrices, all_rows += m.matrices * m.rows;
    const double own = matrices * 2 * kF32 * D(N) * D(K), bytes = own + all_rows * D(N + K) * ActivationSize();
    Add({.op = ProductOp{.format = format,
                         .kind = ProductKind::kWeightGrad,
                         .N = D(N),
                         .K = D(K),
                         .bytes = bytes,
                         .reuse_bytes = 2 * weights + saved},
         .bytes = own,
         .flop = 2 * all_rows * D(N) * D(K),
         .rows = std::move(rows),
         .uneven = uneven});
  }
  void Rows(RowOp op, double rows, int64_t width, double working_set = 0) {
    if (rows <= 0 || width <= 0) return;
    const double chunks = rows / D(RowsPerChunk(width)), set = std::max(working_set, activations);
    Add({.op = RowWork{.op = op, .values = rows * D(width), .chunks = chunks, .working_set = set}});
  }

  void Attention() {
    part = StepPart::kAttention;
    const int64_t q = c().num_heads * c().head_width, kv = c().num_kv_heads * c().head_width;
    Rows(RowOp::kNorm, T, c().hidden);
    Dense(ProductKind::kLinear, q + 2 * kv, c().hidden, T);
    if (c().qk_norm != QkNorm::kNone) Rows(RowOp::kNorm, T, q + kv), Rows(RowOp::kCopy, T, kv);
    Rows(RowOp::kRope, T, q), Rows(RowOp::kRope, T, kv);
    AttentionOp a{.format = model.format,
                  .heads = D(c().num_heads),
                  .kv_heads = D(c().num_kv_heads),
                  .head_width = D(c().head_width),
                  .segments = D(step.full_sequences()),
                  .rows = D(step.rows_per_sequence()),
                  .first_position = step.phase == Phase::kDecode ? D(step.context) : 0,
                  .last_rows = D(step.rows_of_last()),
                  .kv_value_bytes = model.kv_value_bytes};
    const double kv_bytes = a.kv_bytes(), new_bytes = T * 2 * D(kv) * model.kv_value_bytes;
    a.kv_working_set = step.phase == Phase::kDecode ? weights + D(std::ssize(c().layers)) * kv_bytes : kv_bytes;
    if (!training) Rows(RowOp::kCopyAlone, T, 2 * kv, a.kv_working_set);
    Add({.op = a, .bytes = (step.phase == Phase::kDecode ? kv_bytes : new_bytes), .flop = 4 * a.pairs() * D(q)});
    Dense(ProductKind::kLinear, c().hidden, q, T);
    if (training) Rows(RowOp::kCopy, T, c().hidden);
  }

  void AttentionBackward() {
    part = StepPart::kAttention;
    const int64_t q = c().num_heads * c().head_width, kv = c().num_kv_heads * c().head_width, h = c().hidden;
    Round(T, h);
    Dense(ProductKind::kLinear, q, h, T);
    Gradient(model.format, h, q, {{1, T}});
    if (c().qk_norm != QkNorm::kNone) Rows(RowOp::kNorm, T, q + kv, saved), Rows(RowOp::kCopy, T, kv);
    const AttentionOp a{.format = model.format,
                        .backward = true,
                        .heads = D(c().num_heads),
                        .kv_heads = D(c().num_kv_heads),
                        .head_width = D(c().head_width),
                        .segments = D(step.full_sequences()),
                        .rows = D(step.rows_per_sequence()),
                        .kv_working_set = saved,
                        .last_rows = D(step.rows_of_last())};
    Add({.op = a, .flop = 10 * a.pairs() * D(q)});
    Rows(RowOp::kRope, T, q), Rows(RowOp::kRope, T, kv);
    if (c().qk_norm != QkNorm::kNone) Rows(RowOp::kNormBackward, T, q + kv);
    Rows(RowOp::kNorm, T, h, saved);
    Round(T, q + 2 * kv);
    Dense(ProductKind::kLinear, h, q + 2 * kv, T);
    Gradient(model.format, q + 2 * kv, h, {{1, T}});
    Rows(RowOp::kNormBackward, T, h, saved), Rows(RowOp::kAdd, T, h);
  }

  void Round(double rows, int64_t width) {
    if (model.format == DType::kBf16) Rows(RowOp::kRound, rows, width);
  }

  void Ffn(int64_t F, double rows) {
    Dense(ProductKind::kGateUp, 2 * F, c().hidden, rows);
    Dense(ProductKind::kLinear, c().hidden, F, rows);
  }
  void FfnBackward(int64_t F, double rows) {
    const int64_t h = c().hidden;
    Round(rows, h);
    Dense(ProductKind::kDown, F, h, rows);
    Gradient(model.format, h, F, {{1, rows}});
    Rows(RowOp::kSwigluBackward, rows, F, saved);
    Dense(ProductKind::kLinear, h, 2 * F, rows);
    Gradient(model.format, 2 * F, h, {{1, rows}});
  }

  // Experts of each group get their share of what comes to all: those that differ are taken as chosen alike.
  template <class F>
  void ForEachGroup(const MoeConfig& moe, const std::vector<RowsOfMatrices>& all, F&& fn) {
    for (const ExpertGroup& group : moe.experts()) {
      if (!group.spec.is_ffn()) continue;
      std::vector<RowsOfMatrices> rows = all;
      const double share = D(group.count) / D(moe.router.num_experts);
      for (RowsOfMatrices& m : rows) m.matrices *= share;
      fn(group.spec, rows);
    }
  }

  // Fewer experts with as many more rows each, where that was measured.
  std::vector<RowsOfMatrices> ExpertRows(const ExpertChances& chances) {
    if (chances.p != last_chances) last_chances = chances.p, last_rows = RowsOfExperts(chances, T);  // layers are often alike
    auto rows = last_rows;
    const double distinct = model.distinct_experts.empty() ? 0 : model.distinct_experts[layer_at];
    if (distinct <= 0) return rows;
    double all = 0;
    for (const RowsOfMatrices& m : rows) all += m.matrices;
    for (RowsOfMatrices& m : rows) m.matrices *= distinct / all, m.rows *= all / distinct;
    return rows;
  }

  void Moe(const LayerSpec& layer, const ExpertChances& chances) {
    const MoeConfig& moe = layer.moe;
    const RouterConfig& router = moe.router;
    const int64_t h = c().hidden, E = router.num_experts, k = router.top_k;
    part = StepPart::kRouter;
    const bool linear = router.gate == GateNetwork::kLinear;
    if (!linear) Product(ProductKind::kLinear, DType::kF32, router.gate_width, h, {{1, T}});
    Product(ProductKind::kLinear, router.dtype, E, linear ? h : router.gate_width, {{1, T}});
    Add({.op = RoutingOp{.tokens = T, .experts = D(E), .top_k = D(k)}});
    part = StepPart::kExperts;
    Round(T, h);
    const auto rows = ExpertRows(chances);
    for (const RowsOfMatrices& m : rows) out.distinct_experts.back() += m.matrices;
    ForEachGroup(moe, rows, [&](const ExpertSpec& spec, const std::vector<RowsOfMatrices>& r) {
      Product(ProductKind::kGateUp, model.format, spec.product_width(), h, r, true);
      if (spec.depth == 2) Product(ProductKind::kGateUp, model.format, spec.product_width(), spec.width, r, true);
      Product(ProductKind::kDown, model.format, h, spec.width, r, true);
    });
    if (moe.shared_width() > 0) Ffn(moe.shared_width(), T);
    Rows(RowOp::kCombine, T * D(k), h);
    Rows(RowOp::kAdd, T, h);
  }
  void MoeBackward(const LayerSpec& layer, const ExpertChances& chances) {
    const MoeConfig& moe = layer.moe;
    const RouterConfig& router = moe.router;
    const int64_t h = c().hidden, E = router.num_experts, k = router.top_k;
    part = StepPart::kRouter;
    Rows(RowOp::kCombineBackward, T * D(k), h, saved);
    Add({.op = RoutingOp{.backward = true, .tokens = T, .experts = D(E), .top_k = D(k)}});
    const int64_t width = router.gate == GateNetwork::kLinear ? h : router.gate_width;
    Product(ProductKind::kLinear, router.dtype, width, E, {{1, T}});
    Gradient(router.dtype, E, width, {{1, T}});
    if (router.gate != GateNetwork::kLinear) {
      Product(ProductKind::kLinear, DType::kF32, h, width, {{1, T}});
      Gradient(DType::kF32, width, h, {{1, T}});
    }
    part = StepPart::kExperts;
    const auto rows = ExpertRows(chances);
    ForEachGroup(moe, rows, [&](const ExpertSpec& spec, const std::vector<RowsOfMatrices>& r) {
      double own = 0;  // rows of this group
      for (const RowsOfMatrices& m : r) own += m.matrices * m.rows;
      Product(ProductKind::kDown, model.format, spec.width, h, r, true);
      Gradient(model.format, h, spec.width, r, true);
      if (spec.depth == 2) {
        Rows(RowOp::kSwigluBackward, own, spec.width, saved);
        Product(ProductKind::kDown, model.format, spec.width, spec.product_width(), r, true);
        Gradient(model.format, spec.product_width(), spec.width, r, true);
      }
      Rows(RowOp::kSwigluBackward, own, spec.width, saved);
      Product(ProductKind::kDown, model.format, h, spec.product_width(), r, true);
      Gradient(model.format, spec.product_width(), h, r, true);
    });
    if (moe.shared_width() > 0) FfnBackward(moe.shared_width(), T);
    Rows(RowOp::kCombine, T * D(k), h);
  }

  void Head(double rows) {
    part = StepPart::kOther;
    const int64_t h = c().hidden;
    if (!training) Rows(RowOp::kCopyAlone, rows, h);
    Rows(RowOp::kNorm, rows, h);
    Dense(ProductKind::kLinear, c().vocab_size, h, rows);
    if (!training) return;
    Rows(RowOp::kCrossEntropy, rows, c().vocab_size);
    Round(rows, c().vocab_size);
    Dense(ProductKind::kLinear, h, c().vocab_size, rows);
    Gradient(model.format, c().vocab_size, h, {{1, rows}});
    Rows(RowOp::kNormBackward, rows, h);
  }

  void Run() {
    training = step.phase == Phase::kTrain;
    T = D(step.batch);
    const int64_t h = c().hidden, q = c().num_heads * c().head_width, kv = c().num_kv_heads * c().head_width;
    const ParameterCount count = CountParameters(c());
    const double values = D(count.total - (c().tie_embeddings ? 0 : count.embedding));
    weights = values * WeightSize();
    activations = T * D(2 * h + q + 2 * kv) * kF32;
    for (const LayerSpec& layer : c().layers) {
      const double width = layer.ffn == FfnKind::kMoe
                               ? D(layer.moe.router.top_k * layer.moe.expert_width + layer.moe.shared_width())
                               : D(layer.ffn_width);
      const double copies = layer.ffn == FfnKind::kMoe ? D(layer.moe.router.top_k) : 0;
      if (training) saved += T * (kF32 * D(2 * h + 2 * q + 2 * kv) + ActivationSize() * (3 * width + copies * D(h)));
    }
    part = StepPart::kOther;
    Rows(RowOp::kCopy, T, h, D(c().vocab_size * h) * kF32);
    out.ops.back().bytes = T * D(h) * kF32;
    for (size_t l = 0; l < c().layers.size(); ++l) Layer(l, false);
    Head(training ? T : D(step.sequences()));
    if (!training) return;
    for (size_t l = c().layers.size(); l-- > 0;) Layer(l, true);
    part = StepPart::kOther;
    Rows(RowOp::kAdd, T, h, D(c().vocab_size * h) * kF32);
    part = StepPart::kOptimizer;
    Rows(RowOp::kSumSquares, D(count.total), 1, D(count.total) * 16);
    const double wide = ValuesOfWideRows(c()) * AdamwBytes(model.format), all = D(count.total) * AdamwBytes(model.format);
    for (const StreamOp& op : {StreamOp{all - wide}, StreamOp{wide, true}}) Add({.op = op, .bytes = op.bytes});
  }

  void Layer(size_t l, bool backward) {
    const LayerSpec& layer = c().layers[l];
    layer_at = l;
    const ExpertChances own = layer.ffn == FfnKind::kMoe && model.chances.empty()
                                  ? UniformChances(layer.moe.router.num_experts, layer.moe.router.top_k)
                                  : ExpertChances{};
    const ExpertChances& chances = model.chances.empty() ? own : model.chances[l];
    if (!backward) {
      Attention();
      out.distinct_experts.push_back(0);
      part = StepPart::kExperts;
      Rows(RowOp::kNorm, T, c().hidden);
      layer.ffn == FfnKind::kMoe ? Moe(layer, chances) : Ffn(layer.ffn_width, T);
      if (training) Rows(RowOp::kCopy, T, c().hidden);
      return;
    }
    part = StepPart::kExperts;
    Rows(RowOp::kNorm, T, c().hidden, saved);
    layer.ffn == FfnKind::kMoe ? MoeBackward(layer, chances) : FfnBackward(layer.ffn_width, T);
    part = StepPart::kExperts;
    Rows(RowOp::kNormBackward, T, c().hidden, saved);
    Rows(RowOp::kAdd, T, c().hidden);
    AttentionBackward();
  }
};

}  // namespace

std::string_view Name(Phase phase) {
  constexpr std::string_view kNames[] = {"decode", "prefill", "train"};
  return kNames[static_cast<size_t>(phase)];
}

int64_t Step::rows_per_sequence() const {
  return phase == Phase::kDecode ? 1 : std::min(batch, std::max<int64_t>(context, 1));
}

int64_t Step::sequences() const {
  return CeilDiv(batch, rows_per_sequence());
}

ExpertChances UniformChances(int64_t experts, int64_t top_k) {
  return {std::vector<double>(static_cast<size_t>(experts), D(top_k) / D(experts))};
}

ExpertChances ZipfChances(int64_t experts, int64_t top_k, double s) {
  ExpertChances out;
  for (int64_t e = 0; e < experts; ++e) out.p.push_back(std::pow(D(e + 1), -s));
  // What one expert has too much of goes to the others, until none has.
  double left = D(top_k);
  for (size_t first = 0; first < out.p.size();) {
    double sum = 0;
    for (size_t e = first; e < out.p.size(); ++e) sum += out.p[e];
    const double scale = left / sum;
    if (out.p[first] * scale < 1) {
      for (size_t e = first; e < out.p.size(); ++e) out.p[e] *= scale;
      break;
    }
    out.p[first++] = 1, left -= 1;
  }
  return out;
}

double DistinctExperts(const ExpertChances& chances, double tokens) {
  double sum = 0;
  for (const double p : chances.p) sum += 1 - std::pow(1 - std::min(p, 1.0), tokens);
  return sum;
}

namespace {

// Adds count * Binomial(tokens, p) to the experts by rows; what has 0 rows is left out.
void AddBinomial(double tokens, double p, double count, std::map<double, double>& experts) {
  const double mean = tokens * p, variance = mean * (1 - p);
  if (1 - p < 1e-6) {  // where the chance of none at all may be below the least number
    experts[mean] += count;
    return;
  }
  constexpr double kMany = 40;
  if (mean > kMany) {  // a normal distribution at seven points of equal weight and variance 1, none above what there is
    constexpr double kNodes[] = {-1.607, -0.869, -0.402, 0, 0.402, 0.869, 1.607};
    const double deviation = std::min(std::sqrt(variance), (tokens - mean) / kNodes[6]);
    for (const double z : kNodes) experts[mean + z * deviation] += count / 7;
    return;
  }
  const auto most = static_cast<int64_t>(std::min(tokens, mean + 8 * std::sqrt(variance) + 8));
  double chance = std::exp(tokens * std::log1p(-p));
  for (int64_t rows = 1; rows <= most; ++rows) {
    const double r = D(rows);
    chance *= (tokens - r + 1) / r * p / (1 - p);
    if (chance > 1e-9) experts[r] += count * chance;
  }
}

}  // namespace

std::vector<RowsOfMatrices> RowsOfExperts(const ExpertChances& chances, double tokens) {
  std::map<double, double> by_chance, experts;
  for (const double p : chances.p) by_chance[p] += 1;
  for (const auto& [p, count] : by_chance) {
    if (p > 0) AddBinomial(tokens, p, count, experts);
  }
  std::vector<RowsOfMatrices> out;
  for (const auto& [rows, matrices] : experts) out.push_back({matrices, rows});
  return out;
}

StepOps OpsOf(const StepModel& model, const Step& step) {
  MOE_CHECK(step.batch > 0 && step.context >= 0, "a step of batch {} and context {}", step.batch, step.context);
  MOE_CHECK(model.chances.empty() || model.chances.size() == model.config.layers.size(), "chances of {} layers, expected {}",
            model.chances.size(), model.config.layers.size());
  Walk walk{.model = model, .step = step};
  walk.Run();
  return std::move(walk.out);
}

}  // namespace moe
