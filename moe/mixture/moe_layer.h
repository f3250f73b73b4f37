#pragma once
// x [T,D] -> router -> plan -> experts -> combine -> y [T,D]. Usable without a transformer around it.

#include <span>
#include <string>

#include "moe/mixture/dispatch_plan.h"
#include "moe/mixture/executor.h"
#include "moe/mixture/gate.h"
#include "moe/mixture/routing.h"
#include "moe/ops/packed_parameter.h"
#include "moe/tensor/parameter_store.h"

namespace moe {

// How the expert products are run. All give the same sums in the same order, bit for bit.
enum class Executor : uint8_t {
  kGrouped,  // one list of ragged products over the experts' rows
  kPadded,   // buckets of `capacity` rows per expert, the empty ones zero: what textbooks draw, and the twin to measure against
  kLoop,     // one product after the other, expert by expert: what frameworks do
  kBlockSparse,  // products with one block-sparse matrix of all experts' activations (Gale et al. 2022, MegaBlocks)
};

struct MoeConfig {
  RouterConfig router;
  int64_t expert_width = 0;  // F, a multiple of 16
  // Always on, without a gate: one SwiGLU FFN of width num_shared_experts * shared_expert_width; y starts from it.
  int64_t num_shared_experts = 0;
  int64_t shared_expert_width = 0;  // 0: expert_width
  Executor executor = Executor::kGrouped;

  int64_t shared_width() const { return num_shared_experts * (shared_expert_width > 0 ? shared_expert_width : expert_width); }
};
Status Validate(const MoeConfig& config, const std::string& where);

// Gate and up are one matrix: rows in groups of 16 gates followed by their 16 ups, so that a product's panel holds both.
// Expert e of a token: down[e] * (silu(gate[e] x) . (up[e] x)). (Shazeer 2020, SwiGLU)
struct MoeWeights {
  GateWeights gate;
  Parameter* selection_bias = nullptr;  // [E] see BiasRule; gets no gradient, so that the optimizer leaves it; null without
  PackedParameter gate_up;              // [E,2F,D]
  PackedParameter down;                 // [E,D,F]
  PackedParameter shared_gate_up;       // [2Fs,D]; unused without shared experts
  PackedParameter shared_down;          // [D,Fs]
};
// Adds the gate's parameters, "<prefix>selection_bias", "<prefix>experts.gate_up", "<prefix>experts.down",
// "<prefix>shared.gate_up", "<prefix>shared.down" to the store (values 0).
MoeWeights AddMoeWeights(const MoeConfig& config, int64_t D, const std::string& prefix, DType format, ParameterStore& store);
// Makes every pack from the masters: after load and after each optimizer step.
void Repack(MoeWeights& weights, bool with_transposed, ExecContext& ctx);

// What a layer knows of its rows beside their values.
struct LayerTokens {
  std::span<const uint8_t> valid = {};           // [T] nonzero: a real token; empty: all are
  std::span<const int32_t> ids = {};             // [T] for hash routing
  std::span<const int32_t> sequence_begin = {};  // [sequences+1] first rows, then T; empty: one sequence
  std::span<const int64_t> tokens_before = {};   // [E] of the optimizer step, for the global loss; empty: none
  uint64_t key = 0;                              // of what is random in training
  MatView<float> logits_out = {};                // [T,E] the router's logits are copied there; empty: nowhere
  // Inference: taken instead of what the router says, its counts and losses too; gates may be renormalised in place. Null: the
  // router is asked.
  const Routing* routing = nullptr;
};

// What backward reads; all of it in the step's arena. Backward changes none of it. What the experts' products write is of the
// weights' format: in bf16 half the memory, and half the time to read it again.
struct MoeSaved {
  Routing routing;
  DispatchPlan plan;
  RouterSaved router;
  ConstAnyMat input;  // [T,D] x as the weights read it
  GateSaved gate;
  ExpertLayout layout;           // rows of the next three
  AnyMat gate_up;                // [rows,2F] products before the activation
  AnyMat hidden;                 // [rows,F]  after it, as the weights read it
  AnyMat expert_out;             // [rows,D]  as the weights read it
  std::span<int32_t> token_row;  // [T] token -> row of the next two, -1: padding; empty without shared experts or padding
  AnyMat shared_gate_up;         // [tokens,2Fs], valid rows only
  AnyMat shared_hidden;          // [tokens,Fs]
};

struct MoeLayer {
  MoeConfig config;
  MoeWeights weights;
  double capacity_factor = -1;  // of training; -1: the config's, which UpdateCapacityFactor has not moved yet

  double training_capacity_factor() const { return capacity_factor >= 0 ? capacity_factor : config.router.capacity.factor; }

  // y [T,D] is overwritten; the residual is the caller's, so a token that every expert dropped gets 0 (plus the shared experts'
  // part). Padding rows get y = 0. saved null: evaluation and inference. Otherwise it is filled from the step's arena, and
  // noise and the capacity of training apply. aux (may be null) receives the counts and losses; its spans live in the arena.
  // num_dropped (may be null) the dropped slots.
  Status Forward(MatView<const float> x, const LayerTokens& tokens, MatView<float> y, MoeSaved* saved, RouterAux* aux,
                 int64_t* num_dropped, ExecContext& ctx) const;
  // Overwrites d_x, adds to the weights' gradients; loss_scale as in RouteBackward.
  void Backward(MatView<const float> x, const MoeSaved& saved, MatView<const float> d_y, float loss_scale, MatView<float> d_x,
                ExecContext& ctx) const;
};

}  // namespace moe
