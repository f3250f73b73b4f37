#pragma once

#include <span>

#include "moe/ops/exec_context.h"
#include "moe/tensor/mat_view.h"

namespace moe {

// y += x. x, y [T,D].
void Add(MatView<const float> x, MatView<float> y, ExecContext& ctx);
// d_gate_up [T,2F] from the interleaved product of forward [T,2F] and d_h [T,F]; d_gate_up may be gate_up itself.
void SwigluBackward(MatView<const float> gate_up, MatView<const float> d_h, MatView<float> d_gate_up, ExecContext& ctx);
// Sum of squares in double, by fixed chunks combined in order: the same for any number of threads.
double SumSquares(std::span<const float> x, ExecContext& ctx);

}  // namespace moe
