#pragma once
// Experts that need no matrix product: zero, copy, constant. (Jin et al. 2024, MoE++) What they cost is a pass over their rows.

#include "moe/mixture/moe_layer.h"

namespace moe {

// The slots of zero experts lose their rows: 0 for them in the result [S], else as in kept [S] (empty: all are kept). With
// normalize_after_drop the gates of the others then sum to 1, as in MoE++. Nothing to lose: `kept` itself. num_zero: how many.
std::span<const uint8_t> WithoutZeroExperts(const MoeWeights& weights, const Routing& routing, std::span<const uint8_t> kept,
                                            int64_t& num_zero, ExecContext& ctx);

// The rows of a group in saved.expert_out, where it is of copies or constants. x is read as the weights read it; a constant's
// own values and products are float32.
void RunZeroComputation(const ExpertWeights& group, const MoeSaved& saved, ExecContext& ctx);
// d_input [rows,D] from d_out [rows,D]; adds to the gradients of constants, row after row.
void RunZeroComputationBackward(const ExpertWeights& group, const MoeSaved& saved, ConstAnyMat d_out, AnyMat d_input,
                                ExecContext& ctx);

}  // namespace moe
