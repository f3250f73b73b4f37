#pragma once
// A decoder-only transformer whose layers have dense or MoE FFNs. One Forward serves training, evaluation, generation and
// sweeps: a batch is rows.

#include <memory>
#include <span>
#include <vector>

#include "moe/model/config.h"
#include "moe/model/kv_cache.h"
#include "moe/model/step_batch.h"
#include "moe/ops/packed_parameter.h"
#include "moe/ops/rope.h"
#include "moe/tensor/parameter_store.h"

namespace moe {

struct AttentionWeights {
  Parameter* norm = nullptr;    // [D]
  PackedParameter qkv;          // [(H+2G)*P, D]: query heads, key heads, value heads
  PackedParameter out;          // [D, H*P]
  Parameter* q_norm = nullptr;  // [P] or [H*P]; null without QkNorm
  Parameter* k_norm = nullptr;  // [P] or [G*P]
};

struct DenseFfnWeights {
  PackedParameter gate_up;  // [2F,D], groups of 16 gates then 16 ups
  PackedParameter down;     // [D,F]
};

struct Block {
  int64_t layer = 0;
  LayerSpec spec;
  AttentionWeights attention;
  Parameter* ffn_norm = nullptr;  // [D]
  DenseFfnWeights dense;          // spec.ffn == kDense
  MoeLayer moe;                   // spec.ffn == kMoe
};

// What one MoE layer's router did in a step. Empty counts for a dense layer.
struct LayerStats {
  std::vector<int64_t> tokens_per_expert;  // [E] before dropping
  int64_t num_tokens = 0;
  int64_t num_slots = 0;
  int64_t num_dropped = 0;
  double capacity_factor = 0;                        // of training, of the last micro-batch; 0: dropless
  double balance_loss = 0, z_loss = 0, entropy = 0;  // means over tokens; coefficients not applied
  RouterLosses losses;                               // the others, as those
  double gate_sum = 0, largest_logit = 0;            // see RouterAux

  double gate_mean() const { return num_slots == 0 ? 0 : gate_sum / static_cast<double>(num_slots); }
};

// Sums over all steps since Clear: several micro-batches, or windows of an evaluation, add up. Means of LayerStats are weighted
// by num_tokens.
struct StepStats {
  void Clear();  // keeps the memory

  double loss_sum = 0;  // nats, over targets that count
  int64_t num_targets = 0;
  std::vector<LayerStats> layers;  // [L]
};

class Model {
 public:
  // Parameters are zeros. `format` (kF32, kBf16) is what products read; masters, sums, router and residual are float32.
  // training: gradients and transposed packs too. masters false (inference only): only embedding, norms and routers have
  // values; the other matrices are packed one by one (LoadModel) or live in UsePackedStorage, so that a big model is never
  // there twice.
  Model(ModelConfig config, DType format, bool training, bool masters = true);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // Normal(0, 0.02) matrices, output projections scaled by 1/sqrt(2L), ones for norms; a function of seed and the parameter's
  // name alone, so that twins begin with the same attention and embedding. Then packs what has a master.
  void Initialize(uint64_t seed, ExecContext& ctx);
  // To be called when masters changed all at once (load); a step of the optimizer writes packs itself.
  void Repack(ExecContext& ctx);
  // For inference: packs everything and frees the masters that only products read.
  void RepackAndDropMasters(ExecContext& ctx);

  // Who multiplies with a parameter, for the optimizer: one entry per parameter, in the store's order.
  struct PackOf {
    PackedParameter* packed = nullptr;  // null: nobody, it is read as it is
    int64_t experts_of = -1;            // the layer whose experts' values it holds; -1: no experts'
    int64_t first_expert = 0;           // of them
  };
  std::vector<PackOf> Packs();

  const ModelConfig& config() const { return config_; }
  DType format() const { return format_; }
  ParameterStore& parameters() { return store_; }
  const ParameterStore& parameters() const { return store_; }

  // logits [logit_rows, V] in the step's arena. stats may be null. An error (NaN or infinite router logits) names layer and
  // row. The caller resets ctx.arena between steps.
  Result<MatView<float>> Forward(const StepBatch& batch, StepStats* stats, ExecContext& ctx) const;

  // Mean-free sums: adds cross-entropy of every row against targets [T] (-1: none) to stats; logits are made in chunks, never
  // [T,V]. loss_per_row [T] (nats; 0 where no target) may be empty. Dropless, no gradient.
  Status Evaluate(const StepBatch& batch, std::span<const int32_t> targets, StepStats* stats, std::span<float> loss_per_row,
                  ExecContext& ctx) const;

  // Forward, loss and backward; gradients are added of grad_scale * sum of cross-entropies + aux_scale * (coefficients * router
  // losses of each layer). Typical: grad_scale = 1 / targets of the optimizer step, aux_scale = 1 / micro-batches. Capacity
  // applies.
  Status ForwardBackward(const StepBatch& batch, std::span<const int32_t> targets, float grad_scale, float aux_scale,
                         StepStats* stats, ExecContext& ctx);

  // After a step of the optimizer, from the stats of all its micro-batches: selection biases and capacities that follow the
  // load.
  void UpdateRouters(const StepStats& stats);
  // The capacity factors of training, layer by layer; -1 where the config's stands.
  std::vector<double> CapacityFactors() const;
  void SetCapacityFactors(std::span<const double> factors);

  // Of a layer with experts, for measuring it: what is changed in its config is to be changed back.
  MoeLayer& moe_layer(int64_t layer);

  // Bytes of packs; and packs placed in somebody else's memory with whatever is in it (see PackedParameter::UseStorage).
  // Routers keep their own float32 packs and are not in it: call Initialize for them, the embedding and the norms.
  int64_t PackedStorageBytes() const;
  void UsePackedStorage(std::span<std::byte> bytes);

 private:
  friend struct ModelPass;  // model.cc, model_backward.cc: the walk over the layers

  ModelConfig config_;
  DType format_;
  bool training_;
  ParameterStore store_;
  RopeTable rope_;
  Parameter* embedding_ = nullptr;   // [V,D]
  PackedParameter head_;             // [V,D]: of the embedding when tied
  Parameter* final_norm_ = nullptr;  // [D]
  std::vector<Block> blocks_;
};

// Bytes that a model of this shape needs, counted before it is built: `moe inspect` prints them, sweeps refuse by them.
struct MemoryNeed {
  int64_t masters = 0, packs = 0, gradients = 0, moments = 0, activations = 0, kv_cache = 0;
  int64_t program = 16 << 20;  // code, libraries, tokenizer, stacks, buffers of files: about as much for every model
  int64_t total() const { return masters + packs + gradients + moments + activations + kv_cache + program; }
};
// Training: masters, gradients, two moments, both packs, and the activations of one micro-batch of `rows` rows (saved ones,
// scratch, the RoPE table).
MemoryNeed TrainingMemory(const ModelConfig& config, DType format, int64_t rows);
// Inference: packs and float32 leftovers (embedding, norms, router), cache, and the activations of a step of `rows` rows.
MemoryNeed InferenceMemory(const ModelConfig& config, DType format, int64_t rows, int64_t sequences, int64_t positions);

}  // namespace moe
