#pragma once
// The arithmetic of all experts over the rows of a layout, forward and backward, run as the layer's executor says. The layer's
// own.

#include <optional>
#include <span>

#include "moe/mixture/moe_layer.h"

namespace moe {

// Tokens that are not padding, when some are: their rows, in order. Empty when all are tokens.
struct ValidRows {
  std::span<const int32_t> rows;  // [tokens]
  std::span<int32_t> token_row;   // [T] its inverse, -1: padding
  int64_t count = 0;              // tokens
};
ValidRows FindValidRows(const Routing& routing, ExecContext& ctx);
// The tokens' rows of m, side by side: m itself when there is no padding.
MatView<const float> OnlyValid(MatView<const float> m, const ValidRows& valid, ExecContext& ctx);

// Takes what the experts of `saved.layout` and the shared ones write from the arena: `saved.experts`, `expert_out`, `shared`.
// As much whichever experts the rows went to: the groups together have room for all rows in the widest. training: also what
// only backward reads.
void AllocExperts(const MoeLayer& layer, const ValidRows& valid, bool training, MoeSaved& saved, ExecContext& ctx);
// [rows,cols] of the layout, and room for the rows that slots of zero experts might have had.
AnyMat AllocExpertRows(const MoeSaved& saved, int64_t cols, DType format, ExecContext& ctx);

// All layers of every busy expert and of the shared ones, one list of products after the other, into the matrices of `saved`
// and shared_out [tokens,D] (empty: no shared experts). x: as the weights read it (Rounded).
void RunExperts(const MoeLayer& layer, ConstAnyMat x, const ValidRows& valid, MoeSaved& saved, MatView<float> shared_out,
                ExecContext& ctx);

// d_out [rows,D], d_shared_out [tokens,D] -> d_input [rows,D], d_shared_input [tokens,D]; adds to the weights' gradients, and
// does the product `router` with them. x, d_out, d_shared_out: as the weights read them (Rounded).
void RunExpertsBackward(const MoeLayer& layer, ConstAnyMat x, const ValidRows& valid, const MoeSaved& saved, AnyMat d_out,
                        ConstAnyMat d_shared_out, AnyMat d_input, MatView<float> d_shared_input,
                        const std::optional<WeightGradProblem>& router, ExecContext& ctx);

}  // namespace moe
