#pragma once
// Causal grouped-query attention by blocks of keys with a running softmax (Dao et al. 2022): no [C,C] matrix exists.

#include <span>

#include "moe/ops/exec_context.h"
#include "moe/tensor/dtype.h"
#include "moe/tensor/mat_view.h"

namespace moe {

struct AttentionShape {
  int64_t num_heads;     // H query heads; head h reads key/value head h / (H/G)
  int64_t num_kv_heads;  // G
  int64_t head_width;    // P
  float scale;           // of q.k, usually 1/sqrt(P)
  // What products read, kF32 or kBf16. kBf16: scale*q, k, v and exp(score - max), in backward also d_out and
  // d_s, are rounded; sums, softmax and results stay float32.
  DType format = DType::kF32;
};

// Rows of one sequence that attend to its keys and values of positions 0 .. first_position + i.
struct AttentionSegment {
  int64_t row_begin;  // first row of q
  int64_t num_rows;
  int64_t first_position;  // of the first row; in training 0
  const float* k;          // key of position p, all heads side by side: k + p*kv_stride, [G*P]
  const float* v;
  int64_t kv_stride;
};

// q, out [T, H*P]; log_sum_exp [T, H] (for backward) or empty. Key blocks lie at absolute positions, so a row's result is the
// same, bit for bit, in training, prefill and decode, whatever rows stand beside it.
void AttentionForward(const AttentionShape& shape, MatView<const float> q, std::span<const AttentionSegment> segments,
                      MatView<float> out, MatView<float> log_sum_exp, ExecContext& ctx);

// Segments must start at position 0 and lie in the step itself: k, v of a segment are rows row_begin.. of the matrices k, v [T,
// G*P]. Overwrites d_q [T,H*P], d_k, d_v [T,G*P] on the segments' rows.
void AttentionBackward(const AttentionShape& shape, MatView<const float> q, MatView<const float> k, MatView<const float> v,
                       std::span<const AttentionSegment> segments, MatView<const float> out, MatView<const float> log_sum_exp,
                       MatView<const float> d_out, MatView<float> d_q, MatView<float> d_k, MatView<float> d_v,
                       ExecContext& ctx);

}  // namespace moe
