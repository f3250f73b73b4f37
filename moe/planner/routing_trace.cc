#include "moe/planner/routing_trace.h"

#include "moe/base/rng.h"

namespace moe {

std::vector<TracedLayer> LayersToTrace(Model& model) {
  std::vector<TracedLayer> out;
  const auto& layers = model.config().layers;
  for (size_t l = 0; l < layers.size(); ++l) {
    if (layers[l].ffn != FfnKind::kMoe) continue;
    out.push_back({.layer = static_cast<int64_t>(l), .router = layers[l].moe.router});
    const Parameter* bias = model.moe_layer(static_cast<int64_t>(l)).weights.selection_bias;
    if (bias != nullptr) out.back().selection_bias = bias->value.span();
  }
  return out;
}

TracedStep::TracedStep(std::span<const RowInfo> rows, uint64_t seed_of_text, int64_t first) : seed(seed_of_text), begin(first) {
  for (size_t t = 0; t < rows.size(); ++t) {
    ids.push_back(rows[t].token_id);
    if (rows[t].position == 0) sequence_begin.push_back(static_cast<int32_t>(t));
  }
  sequence_begin.push_back(static_cast<int32_t>(rows.size()));
}

ReplayOptions TracedStep::Options(const TracedLayer& layer, bool training) const {
  const uint64_t own = static_cast<uint64_t>(begin) ^ MixBits(static_cast<uint64_t>(layer.layer));
  return {.training = training, .seed = MixBits(seed ^ MixBits(own)), .ids = ids, .sequence_begin = sequence_begin};
}

Result<Replay> Tracer::Replayed(RouterConfig policy, MatView<const float> logits, std::span<const float> bias,
                                const ReplayOptions& how) {
  policy.bias = false;  // it is in the logits
  arena_.Reset();
  ExecContext own{ctx_.pool, arena_, ctx_.kernels};
  return ReplayPolicy(policy, logits, bias, how, own);
}

Status Tracer::Add(const TracedStep& step, MatView<const float> logits, TracedLayer& layer) {
  const auto bias = layer.router.selects_by_bias() ? layer.selection_bias : std::span<const float>();
  MOE_TRY(const Replay own, Replayed(layer.router, logits, bias, step.Options(layer, /*training=*/false)));
  const int64_t slots = layer.slot_begin.back();
  for (size_t t = 1; t < own.slot_begin.size(); ++t) layer.slot_begin.push_back(slots + own.slot_begin[t]);
  layer.expert.insert(layer.expert.end(), own.expert.begin(), own.expert.end());
  return {};
}

}  // namespace moe
