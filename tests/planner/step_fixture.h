#pragma once
// Machines and shapes that predictions are held against: made up, but of every kind there is.

#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "moe/planner/step_ops.h"

namespace moe::test {

// Caches, rates that grow with the rows, and a fixed cost wherever a profile has one.
inline MachineProfile FakeCpu(int threads) {
  MachineProfile m;
  m.name = "fake", m.threads = threads;
  m.l2_bytes = int64_t{1} << 20, m.l3_bytes = int64_t{32} << 20;
  m.weights_bytes_per_s.points = {{1e6, 100e9}, {16e6, 60e9}, {64e6, 25e9}, {512e6, 20e9}};
  m.read_bytes_per_s = 22e9, m.rmw_bytes_per_s = 18e9, m.adamw_bytes_per_s = 15e9, m.adamw_wide_bytes_per_s = 12e9;
  m.peak_f32 = 200e9, m.peak_bf16 = 400e9;
  m.barrier_s = 2e-6, m.step_s = 2e-5;
  for (const DType format : {DType::kF32, DType::kBf16}) {
    const double row_s = 2 * 32 / m.peak_flop_per_s(format);
    for (int kind = 0; kind < kNumProductKinds; ++kind) {
      ProductCost cost{.format = format, .kind = static_cast<ProductKind>(kind)};
      for (const double rows : {1, 2, 4, 8, 16, 64, 256}) {
        cost.step_s.points.push_back({rows, row_s * (rows + 2)});
        cost.panel_s.points.push_back({rows, 1e-9 * (5 + rows)});
      }
      m.products.push_back(cost);
    }
    m.streams.push_back({.format = format, .efficiency = 0.9, .overlap = 4, .matrix_s = 1e-7, .list_s = 5e-7});
    m.streams.push_back({.format = format, .gradients = true, .efficiency = 1.6, .overlap = 2, .list_s = 5e-7});
    AttentionCost attention{.format = format, .row_s = 2e-9, .efficiency = 0.8, .overlap = 3};
    attention.pair_s.points = {{1, 4e-11}, {8, 2.5e-11}, {64, 2e-11}};
    attention.backward_pair_s.points = {{1, 1e-10}, {8, 6e-11}, {64, 5e-11}};
    m.attention.push_back(attention);
  }
  m.routing = {.call_s = 1e-6, .token_s = 2e-8, .expert_s = 1e-9, .slot_s = 5e-9};
  m.routing_backward = {.call_s = 1e-6, .token_s = 1e-8, .expert_s = 1e-9, .slot_s = 1e-8};
  Complete(m);
  return m;
}

struct StepShape {
  std::string name;
  ModelConfig config;
  DType format = DType::kBf16;
  double zipf = 0;  // of the routing; 0: uniform

  std::vector<ExpertChances> chances() const {
    std::vector<ExpertChances> all;
    for (const LayerSpec& layer : config.layers) {
      const RouterConfig& router = layer.moe.router;
      all.push_back(layer.ffn == FfnKind::kMoe ? ZipfChances(router.num_experts, router.top_k, zipf) : ExpertChances{});
    }
    return all;
  }
  StepModel model() const {
    return {.config = config, .format = format, .chances = zipf > 0 ? chances() : std::vector<ExpertChances>{}};
  }
};

inline void PrintTo(const StepShape& shape, std::ostream* out) {
  *out << shape.name;
}

inline LayerSpec MoeOf(int64_t experts, int64_t top_k, int64_t width, int64_t shared = 0) {
  LayerSpec layer{.ffn = FfnKind::kMoe};
  layer.moe.router.num_experts = experts, layer.moe.router.top_k = top_k;
  layer.moe.expert_width = width, layer.moe.num_shared_experts = shared;
  return layer;
}

// One or two layers each; 1 to 256 experts, top-1 to top-8, dense, shared, of groups, mixed with dense layers.
inline std::vector<StepShape> StepShapes() {
  const ModelConfig base{
      .vocab_size = 1000, .hidden = 256, .num_heads = 8, .num_kv_heads = 2, .head_width = 32, .context = 4096};
  const auto with = [&](std::vector<LayerSpec> layers) {
    ModelConfig config = base;
    config.layers = std::move(layers);
    return config;
  };
  LayerSpec groups = MoeOf(9, 2, 0);
  std::vector<ExpertGroup> different;
  for (const char* text : {"4 silu 128", "2 gelu 256 plain deep", "1 zero", "1 copy", "1 constant"}) {
    different.push_back(ParseExpertGroup(text, "test").value());
  }
  SetExperts(different, groups.moe);
  LayerSpec gated = MoeOf(16, 4, 64, 2);
  gated.moe.shared_gate = true;
  ModelConfig untied = with({MoeOf(64, 8, 64), {.ffn = FfnKind::kDense, .ffn_width = 512}});
  untied.tie_embeddings = false, untied.qk_norm = QkNorm::kPerHead;
  ModelConfig narrow = with({MoeOf(4, 2, 48)});
  narrow.vocab_size = 77, narrow.hidden = 72, narrow.head_width = 6;
  LayerSpec gate = MoeOf(32, 2, 64);
  gate.moe.router.gate = GateNetwork::kMlp, gate.moe.router.gate_width = 40;
  const LayerSpec dense{.ffn = FfnKind::kDense, .ffn_width = 1024};
  return {
      {"dense_bf16", with({dense})},
      {"dense_f32", with({dense}), DType::kF32},
      {"one_expert", with({MoeOf(1, 1, 512)})},
      {"2_top1_f32", with({MoeOf(2, 1, 256)}), DType::kF32},
      {"4_top2_odd_widths", narrow},
      {"8_top2_bf16", with({MoeOf(8, 2, 256)})},
      {"8_top8", with({MoeOf(8, 8, 64)})},
      {"16_top4_shared_gate", with({gated})},
      {"groups", with({groups})},
      {"32_top2_gate_network", with({gate})},
      {"64_top8_and_dense", untied},
      {"128_top8_f32", with({MoeOf(128, 8, 32)}), DType::kF32},
      {"256_top1", with({MoeOf(256, 1, 32)})},
      {"256_top8", with({MoeOf(256, 8, 32)})},
      {"64_top8_zipf", with({MoeOf(64, 8, 64)}), DType::kBf16, 1.0},
      {"256_top6_zipf", with({MoeOf(256, 6, 32, 1)}), DType::kBf16, 0.7},
      {"8_top2_zipf2", with({MoeOf(8, 2, 128)}), DType::kF32, 2.0},
  };
}

}  // namespace moe::test
