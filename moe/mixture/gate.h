#pragma once
// The gate network of a layer, x [T,D] -> logits [T,E], whatever the experts' format all in float32, unless the config's dtype
// says otherwise. One of three:
//   linear  W x + b
//   mlp     W silu(V x) + b
//   cosine  s <V x, w_e> / (|V x| |w_e|) + b, s = min(exp(log_scale), 100); without length the cosine is 0, and its gradient
// It costs 2 T D E FLOP a pass, or 2 T (D + E) gate_width.

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "moe/mixture/router_config.h"
#include "moe/ops/packed_parameter.h"
#include "moe/tensor/parameter_store.h"

namespace moe {

struct ValidRows;

inline constexpr double kMostCosineScale = 100;  // Tutel: a temperature of at least 0.01
inline constexpr double kFirstCosineScale = 2;   // and it begins at 0.5

struct GateWeights {
  PackedParameter first;           // what reads x: W [E,D] of a linear gate, else V [gate_width,D]
  PackedParameter last;            // W [E,gate_width]; unused by a linear gate
  Parameter* bias = nullptr;       // [E] of the logits; null without
  Parameter* log_scale = nullptr;  // [1] of cosine; null without

  template <class Fn>
  void ForEachMatrix(Fn&& fn) {
    fn(first);
    if (last.count() > 0) fn(last);
  }
  // Is its master read beside its packs? Cosine measures the rows of W.
  bool reads_master(const Parameter& parameter) const { return log_scale != nullptr && &parameter == &last.parameter(); }
};
// Adds "<prefix>router" (W), and as the gate has them "<prefix>router_hidden" (V), "<prefix>router_scale",
// "<prefix>router_bias", to the store (values 0).
GateWeights AddGateWeights(const RouterConfig& config, int64_t D, const std::string& prefix, ParameterStore& store);
int64_t NumGateValues(const RouterConfig& config, int64_t D);
// What is no matrix: biases 0, a cosine's scale where it begins.
void InitializeVectors(const GateWeights& weights);

// What backward reads, in the step's arena.
struct GateSaved {
  MatView<float> input;         // [T,D] x as the gate read it, where that is another: jitter
  uint64_t key = 0;             // of the jitter
  MatView<float> product;       // [T,gate_width] V x of mlp
  MatView<float> hidden;        // [T,gate_width] what W reads: silu(V x), or V x at length 1
  std::span<float> inv_length;  // [T] 1 / |V x| of cosine, 0 of nothing
};

// logits [T,E] are overwritten; what padding rows hold goes into theirs only. training: with jitter by `key`, and what backward
// needs is saved.
void GateForward(const RouterConfig& config, const GateWeights& weights, MatView<const float> x, bool training, uint64_t key,
                 MatView<float> logits, GateSaved& saved, ExecContext& ctx);

// The gradient as far as the product that reads x, which is done with other products, or alone.
struct GateGradient {
  MatView<const float> d_product;           // [T,N] by the first matrix's product; padding rows are 0
  std::optional<WeightGradProblem> weight;  // of that matrix; none without tokens
};
// d_logits [T,E]: padding rows are 0, and no other row of them is read. Adds to the gradients of everything but the first
// matrix.
GateGradient GateBackward(const RouterConfig& config, const GateWeights& weights, MatView<const float> x,
                          const GateSaved& saved, const ValidRows& valid, MatView<const float> d_logits, ExecContext& ctx);
// d_x [T,D] += what comes through the gate's input.
void AddGateInputGradient(const RouterConfig& config, const GateWeights& weights, const GateSaved& saved,
                          const GateGradient& gradient, MatView<float> d_x, ExecContext& ctx);

}  // namespace moe
