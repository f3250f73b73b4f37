#pragma once

#include <span>

#include "moe/ops/exec_context.h"
#include "moe/tensor/any_mat.h"

namespace moe {

// A matrix in the step's arena, of float32 or bf16.
AnyMat AllocMat(int64_t rows, int64_t cols, DType dtype, ExecContext& ctx);
// x as products with weights of `format` read it: x itself, or rounded once, for several products, into the arena.
ConstAnyMat Rounded(ConstAnyMat x, DType format, ExecContext& ctx);
// y += x. x, y [T,D].
void Add(MatView<const float> x, MatView<float> y, ExecContext& ctx);
// d_gate_up [T,2F] from the interleaved product of forward [T,2F] and d_h [T,F], all float32 or all bf16; may be gate_up
// itself.
void SwigluBackward(ConstAnyMat gate_up, ConstAnyMat d_h, AnyMat d_gate_up, ExecContext& ctx);
// Sum of squares in double, by fixed chunks combined in order: the same for any number of threads.
double SumSquares(std::span<const float> x, ExecContext& ctx);

}  // namespace moe
