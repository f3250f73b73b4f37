#pragma once
// x [T,D] -> router -> plan -> experts -> combine -> y [T,D]. Usable without a transformer around it.

#include <span>
#include <string>
#include <vector>

#include "moe/mixture/dispatch_plan.h"
#include "moe/mixture/executor.h"
#include "moe/mixture/expert_spec.h"
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
  int64_t expert_width = 0;  // F, a multiple of 16; 0 with groups
  // Experts that differ, in order; empty: all are SwiGLU FFNs of expert_width. Made by SetExperts.
  std::vector<ExpertGroup> groups;
  // Always on: one SwiGLU FFN of width num_shared_experts * shared_expert_width; y starts from it.
  int64_t num_shared_experts = 0;
  int64_t shared_expert_width = 0;  // 0: expert_width
  bool shared_gate = false;         // y starts from sigmoid(w . x) times it, w learned (Qwen2-MoE)
  Executor executor = Executor::kGrouped;

  int64_t shared_width() const { return num_shared_experts * (shared_expert_width > 0 ? shared_expert_width : expert_width); }
  std::vector<ExpertGroup> experts() const;  // also where all are alike
};
// The one way to say which experts the router's num_experts are: equal neighbours become one group, and none is left where all
// are SwiGLU alike. Counts that do not sum up are left for Validate.
void SetExperts(std::vector<ExpertGroup> groups, MoeConfig& config);
// "8 experts of width 256"; of those that differ "9 experts (6 silu 256, 2 zero, 1 copy)".
std::string ExpertsText(const MoeConfig& config);
// Learned values of all experts of a layer, and of those that a token uses: top_k of them, each the mean expert, as if chosen
// uniformly.
int64_t ExpertValues(const MoeConfig& config, int64_t D);
int64_t ActiveExpertValues(const MoeConfig& config, int64_t D);
Status Validate(const MoeConfig& config, const std::string& where);

// Gate and up are one matrix: rows in groups of 16 gates followed by their 16 ups, so that a product's panel holds both.
// Expert e of a token: down[e] * (silu(gate[e] x) . (up[e] x)). (Shazeer 2020, SwiGLU)
struct ExpertWeights {
  ExpertSpec spec;
  int64_t first = 0, count = 0;   // experts
  PackedParameter gate_up;        // [count,2F,D]; [count,F,D] of plain experts: up alone
  PackedParameter middle;         // [count,2F,F] or [count,F,F]: of a second hidden layer
  PackedParameter down;           // [count,D,F]
  Parameter* constant = nullptr;  // [count,D]   kConstant: v
  Parameter* mix = nullptr;       // [count,2,D] kConstant: W, always multiplied in float32
};

struct MoeWeights {
  GateWeights gate;
  Parameter* selection_bias = nullptr;  // [E] see BiasRule; gets no gradient, so that the optimizer leaves it; null without
  std::vector<ExpertWeights> experts;   // one per group, in order
  PackedParameter shared_gate_up;       // [2Fs,D]; unused without shared experts
  PackedParameter shared_down;          // [D,Fs]
  Parameter* shared_gate = nullptr;     // [1,D] always multiplied in float32; null without
  DType format = DType::kF32;           // of the experts' packs
};
// Adds the gate's parameters, "<prefix>selection_bias", "<prefix>experts.gate_up", "<prefix>experts.down",
// "<prefix>shared.gate_up", "<prefix>shared.down", "<prefix>shared.gate" to the store (values 0). The experts' of group g,
// where there are several, begin with "<prefix>experts.<g>."; other matrices are called "up", "middle", "constant", "mix".
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
  // Measuring: the router does all its work, then the slots go to these experts [S] instead, its gates and losses as they are.
  // Outlives backward. Empty: where the router says.
  std::span<const int32_t> forced = {};
};

// The rows of one FFN, or of the experts of a group, on their way; as the weights read them. What is not kept is empty.
struct FfnRows {
  AnyMat gate_up;                     // [rows,2F] products before the activation; [rows,F] of plain experts
  AnyMat hidden;                      // [rows,F]  after it
  AnyMat middle_product, middle_out;  // the same of a second hidden layer

  const AnyMat& last() const { return middle_out.empty() ? hidden : middle_out; }
  FfnRows Rows(int64_t begin, int64_t count) const;
};

// What backward reads; all of it in the step's arena. Backward changes none of it. What the experts' products write is of the
// weights' format: in bf16 half the memory, and half the time to read it again.
struct MoeSaved {
  Routing routing;
  DispatchPlan plan;
  RouterSaved router;
  ConstAnyMat input;  // [T,D] x as the weights read it
  GateSaved gate;
  ExpertLayout layout;           // rows of the next two
  std::span<FfnRows> experts;    // one per group of experts: its rows, which follow each other in the layout
  AnyMat expert_out;             // [rows,D]  as the weights read it
  std::span<int32_t> token_row;  // [T] token -> row of the next three, -1: padding; empty without shared experts or padding
  FfnRows shared;                // [tokens,..], valid rows only
  MatView<float> shared_out;     // [tokens,D] with a gate: after it
  std::span<float> shared_gate;  // [tokens]   its values
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
