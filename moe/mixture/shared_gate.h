#pragma once
// A gate on the shared experts: y += sigmoid(w . x) * shared(x), w [1,D] learned, float32. (Qwen2-MoE)

#include "moe/mixture/experts.h"

namespace moe {

// Rows of saved.shared_out [tokens,D] *= sigmoid(w . x), which saved.shared_gate keeps. x [T,D].
void GateShared(const Parameter& w, MatView<const float> x, const ValidRows& valid, MoeSaved& saved, ExecContext& ctx);

// d_y [tokens,D] by what was gated; d_out [tokens,D], overwritten, by what came out of the shared experts. Adds to w's
// gradient. Returns d_z [tokens] by w . x.
std::span<const float> GateSharedBackward(const Parameter& w, MatView<const float> x, const ValidRows& valid,
                                          const MoeSaved& saved, MatView<const float> d_y, MatView<float> d_out,
                                          ExecContext& ctx);
// Rows of d_x [tokens,D] += d_z w.
void AddSharedGateInput(const Parameter& w, std::span<const float> d_z, MatView<float> d_x, ExecContext& ctx);

}  // namespace moe
