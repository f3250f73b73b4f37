#pragma once
// The way back from experts' rows to tokens, and there, where gates are on it. By token, in slot order, not by row: a token has
// rows in several experts, so scattering by expert would race, and the order of the sum would depend on who came first.

#include <span>

#include "moe/mixture/routing.h"
#include "moe/tensor/any_mat.h"

namespace moe {

// y[t] = base[base_row[t]] + sum over t's slots, in slot order, of gate * rows[slot_row]. gate [S] or empty: 1. slot_row [S],
// -1: dropped, adds nothing. base empty: 0; base_row [T] or empty: t; -1: 0. y [T,D] is overwritten: a token without slots or
// base gets exact zeros.
void Combine(const Routing& routing, std::span<const int32_t> slot_row, std::span<const float> gate, ConstAnyMat rows,
             MatView<const float> base, std::span<const int32_t> base_row, MatView<float> y, ExecContext& ctx);

// d_gate [S] = <rows[slot_row], d_y[t]>, d_rows[slot_row] = gate * d_y[t], float32 or bf16. gate as above. d_gate or d_rows
// empty: not wanted. Dropped slots get exactly 0; rows of d_rows that no slot names are not touched.
void CombineBackward(const Routing& routing, std::span<const int32_t> slot_row, std::span<const float> gate, ConstAnyMat rows,
                     MatView<const float> d_y, std::span<float> d_gate, AnyMat d_rows, ExecContext& ctx);

// rows[slot_row] = gate * x[t], rounded once, for every slot that has a row: what experts read when gates multiply their input.
void GatedRows(const Routing& routing, std::span<const int32_t> slot_row, MatView<const float> x, AnyMat rows,
               ExecContext& ctx);

}  // namespace moe
