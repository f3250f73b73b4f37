#pragma once
// What the routers of a model choose, layer by layer, while it reads a text: policies replayed on the logits that it computed.

#include <cstdint>
#include <span>
#include <vector>

#include "moe/mixture/replay.h"
#include "moe/model/model.h"

namespace moe {

// A layer with experts, and the choices of its tokens so far.
struct TracedLayer {
  int64_t layer = 0;
  RouterConfig router;
  std::span<const float> selection_bias = {};  // of the model's weights; empty where there is none
  std::vector<int64_t> slot_begin = {0};       // [T+1]
  std::vector<int32_t> expert = {};            // [S]
};
// Those of a model, without choices. They look at its weights.
std::vector<TracedLayer> LayersToTrace(Model& model);

// One step of the model, as EvaluateOptions::on_router_logits shows it.
struct TracedStep {
  std::vector<int32_t> ids;             // [T] tokens read
  std::vector<int32_t> sequence_begin;  // first rows, then T
  uint64_t seed = 1;                    // of noise
  int64_t begin = 0;                    // tokens of the text before it

  TracedStep(std::span<const RowInfo> rows, uint64_t seed, int64_t begin);
  ReplayOptions Options(const TracedLayer& layer, bool training) const;
};

// Replays in memory of its own: that of the step is still in use.
class Tracer {
 public:
  explicit Tracer(ExecContext& ctx) : ctx_(ctx) {}
  // What a policy makes of the layer's logits [T,E]; `bias`: of selection, may be empty.
  Result<Replay> Replayed(RouterConfig policy, MatView<const float> logits, std::span<const float> bias,
                          const ReplayOptions& how);
  // What the layer's own router does when the model is used, added to the layer's choices.
  Status Add(const TracedStep& step, MatView<const float> logits, TracedLayer& layer);

 private:
  ExecContext& ctx_;
  Arena arena_;
};

}  // namespace moe
