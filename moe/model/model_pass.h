#pragma once
// The walk over the layers. Not for others: what model.cc, model_forward.cc and model_backward.cc share.

#include "moe/model/model.h"
#include "moe/ops/attention.h"

namespace moe {

// What forward keeps of one layer for backward. Rows normed on the way are not kept: backward norms them again, which costs
// little beside the products.
struct LayerSaved {
  MatView<float> x;                // [T,D] the stream before attention
  std::span<float> attention_rms;  // [T]   1/rms of x
  MatView<float> qkv;              // [T,(H+2G)*P] the product; without QkNorm its q and k are rotated in place
  std::span<float> q_rms, k_rms;   // [T] or [T*H], [T*G]
  MatView<float> attended;         // [T,H*P]
  MatView<float> log_sum_exp;      // [T,H]
  MatView<float> x_mid;            // [T,D] the stream between attention and FFN
  std::span<float> ffn_rms;        // [T]
  AnyMat gate_up;                  // [T,2F] of a dense FFN
  AnyMat hidden;                   // [T,F], as its weights read it
  MoeSaved moe;
};

// Adjacent real rows of one sequence.
struct Segment {
  int64_t row_begin, num_rows;
  int32_t sequence, first_position;
};

// What layers need to know of the rows. Padding has token 0 and position 0.
struct PassRows {
  std::span<const int32_t> ids, positions;  // [T]
  std::span<const uint8_t> valid;           // [T], or empty: all are
  std::span<const Segment> segments;
  std::span<const int32_t> sequence_begin;  // [segments+1] first rows, then T: padding belongs to what stands before it
  uint64_t key = 0;
  std::span<const MatView<float>> router_logits;  // [L] as StepBatch has them, or empty
  std::span<const std::span<const int32_t>> forced_experts;
  int64_t num_rows() const { return static_cast<int64_t>(ids.size()); }
};

struct HeadsView {
  MatView<float> q, k, v;  // [T,H*P], [T,G*P], [T,G*P], normed and rotated
};

// Rows of logits made at a time.
int64_t HeadChunkRows(int64_t vocab_size);

struct ModelPass {
  const Model& model;
  ExecContext& ctx;

  const ModelConfig& config() const { return model.config_; }
  int64_t D() const { return model.config_.hidden; }
  int64_t query_width() const { return model.config_.num_heads * model.config_.head_width; }
  int64_t kv_width() const { return model.config_.num_kv_heads * model.config_.head_width; }
  AttentionShape attention_shape() const;
  MatView<float> Matrix(int64_t rows, int64_t cols) const { return {ctx.arena.Alloc<float>(rows * cols).data(), rows, cols}; }

  // model_forward.cc
  Result<PassRows> CheckRows(const StepBatch& batch) const;
  Result<std::span<const int32_t>> CheckTargets(const PassRows& rows,
                                                std::span<const int32_t> targets) const;  // -1 for padding
  // The stream after all layers, in the arena. normed [T,D]: scratch; when saving, backward must be given the same, because the
  // MoE layers remember where their input lay. saved [L], empty when inferring. stats may be null.
  Result<MatView<float>> Layers(const PassRows& rows, KvCache* cache, MatView<float> normed, std::span<LayerSaved> saved,
                                StepStats* stats) const;
  // x_out = x + block(norm(x)); x_out may be x when nothing is saved. normed [T,D]: scratch.
  void AttentionForward(const Block& block, int64_t layer, const PassRows& rows, KvCache* cache, MatView<float> normed,
                        MatView<float> x, MatView<float> x_out, LayerSaved* saved) const;
  Status FfnForward(const Block& block, const PassRows& rows, MatView<float> normed, MatView<float> x, MatView<float> x_out,
                    LayerSaved* saved, LayerStats* stats) const;
  // q, k and v of a product, normed into new memory (QkNorm) or taken as they lie, then rotated. Already rotated: backward asks
  // again.
  HeadsView Heads(const Block& block, const PassRows& rows, MatView<float> qkv, LayerSaved* saved, bool already_rotated) const;
  std::span<AttentionSegment> Segments(const PassRows& rows, const HeadsView& heads, int64_t layer, KvCache* cache) const;
  void ZeroPadding(const PassRows& rows, MatView<float> m) const;
  // Adds in row order. A loss that is not finite is an error, which names the layer if the saved streams tell.
  Status AddLoss(std::span<const float> loss, std::span<const int32_t> targets, std::span<const LayerSaved> saved,
                 StepStats* stats) const;
  tl::unexpected<Error> NotFinite(int64_t row, float loss, std::span<const LayerSaved> saved) const;

  // model_backward.cc. d_x [T,D]: in, the gradient by the layer's output; out, by its input. normed, d_normed [T,D]: scratch.
  void AttentionBackward(const Block& block, const PassRows& rows, LayerSaved& saved, MatView<float> normed,
                         MatView<float> d_normed, MatView<float> d_x) const;
  void FfnBackward(const Block& block, LayerSaved& saved, float aux_scale, MatView<float> normed, MatView<float> d_normed,
                   MatView<float> d_x) const;
  // Losses, and the gradient by the stream after all layers.
  void HeadForwardBackward(MatView<const float> x, std::span<const int32_t> targets, float grad_scale, MatView<float> normed,
                           MatView<float> d_x, std::span<float> loss) const;

  // Every matrix that products read, in a fixed order; of routers only when asked.
  template <class Fn>
  static void ForEachPacked(Model& model, bool routers, Fn&& fn) {
    for (Block& block : model.blocks_) {
      fn(block.attention.qkv);
      fn(block.attention.out);
      if (block.spec.ffn == FfnKind::kDense) {
        fn(block.dense.gate_up);
        fn(block.dense.down);
        continue;
      }
      MoeWeights& moe = block.moe.weights;
      if (routers) moe.gate.ForEachMatrix(fn);
      for (ExpertWeights& group : moe.experts) {
        for (PackedParameter* packed : {&group.gate_up, &group.middle, &group.down}) {
          if (packed->count() > 0) fn(*packed);
        }
      }
      if (block.spec.moe.shared_width() > 0) {
        fn(moe.shared_gate_up);
        fn(moe.shared_down);
      }
    }
    fn(model.head_);
  }
};

}  // namespace moe
