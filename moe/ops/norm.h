#pragma once

#include <span>

#include "moe/ops/exec_context.h"
#include "moe/tensor/mat_view.h"

namespace moe {

// y = x / rms(x) * weight, row by row. x, y [T,D]; weight [D]; inv_rms [T] (for backward) or empty. A weight of D/n values
// normalises the n parts (heads) of each row by themselves; then inv_rms is [T*n]. (Zhang & Sennrich 2019, eq. 4)
void RmsNormForward(MatView<const float> x, std::span<const float> weight, float epsilon, MatView<float> y,
                    std::span<float> inv_rms, ExecContext& ctx);
// d_x [T,D] is overwritten (may be d_y); d_weight is added to.
void RmsNormBackward(MatView<const float> x, std::span<const float> weight, std::span<const float> inv_rms,
                     MatView<const float> d_y, MatView<float> d_x, std::span<float> d_weight, ExecContext& ctx);

}  // namespace moe
