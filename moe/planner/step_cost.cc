#include "moe/planner/step_cost.h"

#include <algorithm>
#include <cmath>

#include "moe/base/check.h"
#include "moe/ops/optimizer_step.h"
#include "moe/tensor/packed_weight.h"

namespace moe {
namespace {

constexpr double kF32Bytes = 4;

// `rows` rows times a weight [N,K], of which the bytes are read `copies` times over (experts: how many matrices of this shape).
Cost Product(DType format, int64_t N, int64_t K, double copies, double rows) {
  return {.bytes = copies * static_cast<double>(PackedWeight::Bytes(format, N, K)),
          .flop = 2 * rows * static_cast<double>(N) * static_cast<double>(K)};
}

Cost SwigluFfn(DType format, int64_t D, int64_t F, double copies, double rows) {
  Cost cost = Product(format, 2 * F, D, copies, rows);
  return cost += Product(format, D, F, copies, rows);
}

// `distinct` experts read, `rows` rows in all: of experts that differ, the means.
Cost Experts(DType format, int64_t D, const MoeConfig& moe, double distinct, double rows) {
  Cost cost;
  for (const ExpertGroup& group : moe.experts()) {
    const ExpertSpec& spec = group.spec;
    const double share = static_cast<double>(group.count) / static_cast<double>(moe.router.num_experts);
    if (spec.kind == ExpertKind::kConstant) {
      cost += {.bytes = share * distinct * kF32Bytes * 3 * static_cast<double>(D),
               .flop = share * rows * 8 * static_cast<double>(D)};
    }
    if (!spec.is_ffn()) continue;
    cost += Product(format, spec.product_width(), D, share * distinct, share * rows);
    if (spec.depth == 2) cost += Product(format, spec.product_width(), spec.width, share * distinct, share * rows);
    cost += Product(format, D, spec.width, share * distinct, share * rows);
  }
  return cost;
}

Cost Norm(int64_t width) {
  return {.bytes = kF32Bytes * static_cast<double>(width)};
}

Cost Attention(const ModelConfig& c, DType format, const DecodeStep& step) {
  const int64_t query_width = c.num_heads * c.head_width, kv_width = c.num_kv_heads * c.head_width;
  const double B = static_cast<double>(step.batch), positions = static_cast<double>(step.context + 1);
  Cost cost = Norm(c.hidden);
  cost += Product(format, query_width + 2 * kv_width, c.hidden, 1, B);
  cost += Product(format, c.hidden, query_width, 1, B);
  if (c.qk_norm == QkNorm::kPerHead) cost += Norm(2 * c.head_width);
  if (c.qk_norm == QkNorm::kWhole) cost += Norm(query_width + kv_width);
  cost += {.bytes = B * positions * 2 * static_cast<double>(kv_width) * kF32Bytes,
           .flop = B * positions * 2 * 2 * static_cast<double>(query_width)};  // q.k, then p v
  return cost;
}

}  // namespace

Cost StepCost::total() const {
  Cost sum = attention;
  sum += router;
  sum += ffn;
  return sum += other;
}

StepCost DecodeCost(const ModelConfig& config, DType format, const DecodeStep& step, std::span<const double> distinct_experts) {
  MOE_CHECK(distinct_experts.size() == config.layers.size(), "distinct experts of {} layers, expected {}",
            distinct_experts.size(), config.layers.size());
  const int64_t D = config.hidden;
  const double B = static_cast<double>(step.batch);
  StepCost cost;
  for (size_t l = 0; l < config.layers.size(); ++l) {
    const LayerSpec& layer = config.layers[l];
    cost.attention += Attention(config, format, step);
    cost.ffn += Norm(D);
    if (layer.ffn == FfnKind::kDense) {
      cost.ffn += SwigluFfn(format, D, layer.ffn_width, 1, B);
      continue;
    }
    const RouterConfig& router = layer.moe.router;
    const bool linear = router.gate == GateNetwork::kLinear;  // of its own dtype, whatever the model's
    if (!linear) cost.router += Product(DType::kF32, router.gate_width, D, 1, B);
    cost.router += Product(router.dtype, router.num_experts, linear ? D : router.gate_width, 1, B);
    cost.ffn += Experts(format, D, layer.moe, distinct_experts[l], B * static_cast<double>(router.top_k));
    if (layer.moe.shared_width() > 0) cost.ffn += SwigluFfn(format, D, layer.moe.shared_width(), 1, B);
    if (layer.moe.shared_gate)
      cost.ffn += {.bytes = kF32Bytes * static_cast<double>(D), .flop = 2 * B * static_cast<double>(D)};
  }
  cost.other = Norm(D);
  cost.other.bytes += B * static_cast<double>(D) * kF32Bytes;  // embedding rows
  cost.other += Product(format, config.vocab_size, D, 1, B);
  return cost;
}

double UniformDistinctExperts(int64_t experts, int64_t top_k, int64_t tokens) {
  if (experts == 0) return 0;
  const double E = static_cast<double>(experts);
  return E * (1 - std::pow(1 - static_cast<double>(top_k) / E, static_cast<double>(tokens)));
}

std::vector<double> UniformDistinctExperts(const ModelConfig& config, int64_t tokens) {
  std::vector<double> distinct;
  for (const LayerSpec& layer : config.layers) {
    const RouterConfig& router = layer.moe.router;
    distinct.push_back(layer.ffn == FfnKind::kMoe ? UniformDistinctExperts(router.num_experts, router.top_k, tokens) : 0);
  }
  return distinct;
}

double ValuesOfWideRows(const ModelConfig& c) {
  double wide = 0;
  const auto add = [&](double count, int64_t outputs, int64_t inputs) {
    if (inputs > kAdamwWholeRows) wide += count * static_cast<double>(outputs) * static_cast<double>(inputs);
  };
  const int64_t h = c.hidden, q = c.num_heads * c.head_width, kv = c.num_kv_heads * c.head_width;
  const auto ffn = [&](int64_t F) { add(1, 2 * F, h), add(1, h, F); };
  add(c.tie_embeddings ? 1 : 2, c.vocab_size, h);
  for (const LayerSpec& layer : c.layers) {
    add(1, q + 2 * kv, h), add(1, h, q);
    if (layer.ffn != FfnKind::kMoe) {
      ffn(layer.ffn_width);
      continue;
    }
    for (const ExpertGroup& group : layer.moe.experts()) {
      const ExpertSpec& spec = group.spec;
      if (!spec.is_ffn()) continue;
      const auto count = static_cast<double>(group.count);
      add(count, spec.product_width(), h), add(count, h, spec.width);
      if (spec.depth == 2) add(count, spec.product_width(), spec.width);
    }
    if (layer.moe.shared_width() > 0) ffn(layer.moe.shared_width());
  }
  return wide;
}

double SaturationBatch(const ModelConfig& config) {
  double ratio = 0;
  for (const LayerSpec& layer : config.layers) {
    if (layer.ffn != FfnKind::kMoe) continue;
    const RouterConfig& router = layer.moe.router;
    ratio = std::max(ratio, static_cast<double>(router.num_experts) / static_cast<double>(router.top_k));
  }
  return ratio * std::log(20.0);
}

}  // namespace moe
