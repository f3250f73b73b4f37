#pragma once

#include <span>

#include "moe/ops/exec_context.h"
#include "moe/tensor/mat_view.h"

namespace moe {

// out [T,D] = table[ids]. table [V,D]; ids [T] in [0,V).
void EmbeddingForward(MatView<const float> table, std::span<const int32_t> ids, MatView<float> out, ExecContext& ctx);
// d_table[ids[t]] += d_out[t], in row order for every id (bitwise the same for any number of threads).
void EmbeddingBackward(std::span<const int32_t> ids, MatView<const float> d_out, MatView<float> d_table, ExecContext& ctx);

}  // namespace moe
