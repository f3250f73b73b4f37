#pragma once
// What stands between the products of an FFN.

#include "moe/ops/exec_context.h"
#include "moe/tensor/any_mat.h"

namespace moe {

// h [T,F] = f(x), x [T,F]; gated: f(gate) * up, x [T,2F] with gate and up interleaved in groups of 16. Both float32, or both
// bf16: rounded once. Widths are multiples of 16. (SwiGLU as a product's epilogue: ops/gemm.h.)
void Activate(Activation activation, bool gated, ConstAnyMat x, AnyMat h, ExecContext& ctx);
// d_x as x, which it may be, from d_h [T,F]. relu^2 has slope 0 at 0.
void ActivateBackward(Activation activation, bool gated, ConstAnyMat x, ConstAnyMat d_h, AnyMat d_x, ExecContext& ctx);

}  // namespace moe
