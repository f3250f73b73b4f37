#pragma once
// One MoE layer with random weights, run as a caller would, and its twin.

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "moe/mixture/moe_layer.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/reference/moe_twin.h"
#include "tests/mixture/router_fixture.h"

namespace moe::test {

inline constexpr Executor kExecutors[] = {Executor::kGrouped, Executor::kPadded, Executor::kLoop, Executor::kBlockSparse};

// Can the layer run so? Blocks want experts that are alike.
inline bool Runs(const MoeConfig& config, Executor executor) {
  return executor != Executor::kBlockSparse || config.groups.empty();
}
// Experts from entries as recipes have them; num_experts follows.
inline void GiveExperts(MoeConfig& config, const std::vector<std::string>& entries) {
  std::vector<ExpertGroup> groups;
  config.router.num_experts = 0;
  for (const std::string& entry : entries) {
    groups.push_back(ParseExpertGroup(entry, "test").value());
    config.router.num_experts += groups.back().count;
  }
  SetExperts(groups, config);
}

inline std::vector<double> ToDoubles(const std::vector<float>& x) {
  return {x.begin(), x.end()};
}

struct LayerOptions {
  MoeConfig config = {.router = {.num_experts = 4, .top_k = 2}, .expert_width = 16};
  int64_t D = 8;
  DType format = DType::kF32;
  const KernelTable* kernels = SupportedKernelTables().front();
  int threads = 1;
  uint64_t seed = 1;
  double weight_deviation = 0.3;
};

// What a step leaves behind, copied out of the arena.
struct LayerStep {
  std::vector<float> y, d_x;
  std::vector<int32_t> expert, slot_row;
  std::vector<float> gate, probs;
  RouterAux aux;  // without its span
  std::vector<int64_t> tokens_per_expert;
  int64_t num_dropped = 0;
  MoeTwinWeights<float> d_w;
};

class Layer {
 public:
  explicit Layer(const LayerOptions& options)
      : options_(options), pool_(options.threads), ctx_{pool_, arena_, *options.kernels} {
    EXPECT_TRUE(Validate(options.config, "test"));
    layer_ = {.config = options.config, .weights = AddMoeWeights(options.config, options.D, "moe.", options.format, store_)};
    Rng rng(options.seed, 99);
    for (Parameter& p : store_.all()) FillNormal(p.value.span(), rng, options.weight_deviation);
    store_.AllocateGradients();
    Repack(layer_.weights, true, ctx_);
  }
  void Repacked() { Repack(layer_.weights, true, ctx_); }

  // Forward, and backward unless d_y is empty. inference: forward without saved.
  Status Forward(const std::vector<float>& x, const std::vector<uint8_t>& valid, LayerStep& step, MoeSaved* saved) {
    const int64_t D = options_.D, T = static_cast<int64_t>(x.size()) / D;
    step.y.assign(x.size(), -7.0f);
    MOE_TRY(
        layer_.Forward({x.data(), T, D}, {.valid = valid}, {step.y.data(), T, D}, saved, &step.aux, &step.num_dropped, ctx_));
    step.tokens_per_expert.assign(step.aux.tokens_per_expert.begin(), step.aux.tokens_per_expert.end());
    return {};
  }
  LayerStep Infer(const std::vector<float>& x, const std::vector<uint8_t>& valid = {}) {
    arena_.Reset();
    LayerStep step;
    EXPECT_TRUE(Forward(x, valid, step, nullptr));
    return step;
  }
  // Gradients start at zero.
  LayerStep Train(const std::vector<float>& x, const std::vector<float>& d_y, const std::vector<uint8_t>& valid = {},
                  float loss_scale = 1) {
    store_.ZeroGradients();
    return TrainMore(x, d_y, valid, loss_scale);
  }
  LayerStep TrainMore(const std::vector<float>& x, const std::vector<float>& d_y, const std::vector<uint8_t>& valid,
                      float loss_scale) {
    arena_.Reset();
    LayerStep step;
    MoeSaved saved;
    EXPECT_TRUE(Forward(x, valid, step, &saved));
    const int64_t D = options_.D, T = static_cast<int64_t>(x.size()) / D;
    step.d_x.assign(x.size(), -7.0f);
    layer_.Backward({x.data(), T, D}, saved, {d_y.data(), T, D}, loss_scale, {step.d_x.data(), T, D}, ctx_);
    step.expert.assign(saved.routing.expert.begin(), saved.routing.expert.end());
    step.slot_row.assign(saved.plan.slot_row.begin(), saved.plan.slot_row.end());
    step.gate = Floats(saved.routing.gate);
    step.probs = Floats(std::span(saved.router.probs.data, static_cast<size_t>(saved.router.probs.size())));
    step.d_w = MoeTwinWeights<float>::Gather(options_.config, [&](const std::string& name) {
      Parameter* p = store_.Find("moe." + name);
      return p == nullptr ? std::vector<float>() : Floats(p->grad.span());
    });
    return step;
  }

  MoeTwinWeights<float> Weights() {
    return MoeTwinWeights<float>::Gather(options_.config, [&](const std::string& name) {
      Parameter* p = store_.Find("moe." + name);
      return p == nullptr ? std::vector<float>() : Floats(p->value.span());
    });
  }
  // capacity as training would set it.
  template <class Real>
  MoeTwin<Real> Twin(const std::vector<float>& x, const std::vector<uint8_t>& valid = {}) {
    MoeTwin<Real> twin;
    twin.config = options_.config;
    twin.D = options_.D;
    twin.T = static_cast<int64_t>(x.size()) / options_.D;
    twin.bf16 = options_.format == DType::kBf16;
    twin.valid = valid;
    twin.x = MoeTwinWeights<Real>::Convert(x);
    twin.w = MoeTwinWeights<Real>::From(Weights());
    const RouterConfig& rc = options_.config.router;
    if (rc.selection != RouterSelection::kTopK) twin.given = Choices(x, valid);
    int64_t tokens = 0;
    for (int64_t t = 0; t < twin.T; ++t) tokens += twin.IsToken(t) ? 1 : 0;
    if (rc.capacity.factor > 0) twin.capacity = ExpertCapacity(rc, rc.capacity.factor, tokens);
    return twin;
  }

  // Of each token, in training.
  std::vector<std::vector<int64_t>> Choices(const std::vector<float>& x, const std::vector<uint8_t>& valid) {
    arena_.Reset();
    LayerStep step;
    MoeSaved saved;
    EXPECT_TRUE(Forward(x, valid, step, &saved));
    return ChoicesOf(saved.routing.slot_begin, saved.routing.expert);
  }

  ParameterStore& store() { return store_; }
  Parameter& parameter(const std::string& name) { return *store_.Find("moe." + name); }
  MoeLayer& layer() { return layer_; }
  ExecContext& ctx() { return ctx_; }
  Arena& arena() { return arena_; }

 private:
  LayerOptions options_;
  ThreadPool pool_;
  Arena arena_;
  ExecContext ctx_;
  ParameterStore store_;
  MoeLayer layer_;
};

}  // namespace moe::test
