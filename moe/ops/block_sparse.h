#pragma once
// Products with a matrix S that is cut in blocks of which some are there and all others are zero: an MoE layer's activations of
// all experts side by side, where a token has columns only for the experts it chose. (Gale et al. 2022, MegaBlocks)
//
// S is kept by strips: a row of blocks is a dense matrix [block, its columns], so that blocks side by side are one contraction
// and every product is a grouped product over the dense rectangles of the topology, as fast as those, and with the same
// sums in the same order. Block sizes are multiples of 16.

#include <cstdint>
#include <span>

#include "moe/ops/gemm.h"

namespace moe {

// Blocks beside and below each other that share their rows and columns, and lie in strips alike.
struct BlockRectangle {
  int32_t row_block, row_blocks;  // rows of blocks
  int32_t column, columns;        // columns of blocks
  int32_t first, strip;           // its first block in each strip, and the blocks of each
  int32_t rows;                   // rows of S, at most row_blocks * block
  int32_t round;                  // rectangles of one round write different results
};

// Which blocks of S [row_blocks*block, columns*block] are there. Blocked CSR, the row of every block beside it, and the blocks
// by column, so that neither S nor its transpose needs a search.
struct BlockTopology {
  int64_t block = 0;
  int64_t num_columns = 0;                // columns of blocks
  std::span<const int32_t> row_begin;     // [row_blocks+1] blocks of row i: [i], up to [i+1]
  std::span<const int32_t> column;        // [blocks] ascending within a row
  std::span<const int32_t> row;           // [blocks]
  std::span<const int32_t> column_begin;  // [columns+1]
  std::span<const int32_t> by_column;     // [blocks] blocks of column j, rows ascending: [column_begin[j], column_begin[j+1])
  std::span<const int32_t> rows_used;     // [row_blocks] rows of S in it, 0..block: the rest is never read nor written
  std::span<const BlockRectangle> along_rows, along_columns;

  int64_t row_blocks() const { return static_cast<int64_t>(row_begin.size()) - 1; }
  int64_t num_blocks() const { return static_cast<int64_t>(column.size()); }
  int64_t num_rows() const { return row_blocks() * block; }
};
// Spans as above, which must outlive the result; what follows from them lies in the arena. rows_used empty: all are full.
BlockTopology MakeTopology(int64_t block, int64_t num_columns, std::span<const int32_t> row_begin,
                           std::span<const int32_t> column, std::span<const int32_t> rows_used, ExecContext& ctx);

// Values of S: strip after strip. A block has `width` * block columns (2: gate and up interleaved, as products keep them).
struct BlockMatrix {
  const BlockTopology* topology = nullptr;
  AnyMat values;  // [1, blocks * block * columns_per_block], float32 or bf16
  int64_t width = 1;

  bool empty() const { return topology == nullptr; }
  int64_t columns_per_block() const { return width * topology->block; }
  int64_t size() const { return topology->num_blocks() * topology->block * columns_per_block(); }
};

// `weights`, `d_w`: the dense matrix over all columns of S, cut into equal segments (one per expert), each of whole blocks.

// SDD. s (op)= x W^T where s has blocks. x [num_rows, K], or any rows with x_rows [num_rows]. Each segment [columns, K]. With
// kSwiglu s is of half the width of the weights' columns, and pre_activation, of their width, may keep the product.
void SparseFromDense(ConstAnyMat x, std::span<const int32_t> x_rows, std::span<const PackedWeight> weights, Epilogue epilogue,
                     const BlockMatrix& s, const BlockMatrix& pre_activation, ExecContext& ctx);
// DSD. y [num_rows, N] = s W^T; each segment [N, columns]. Used rows without a block become 0. Rows with blocks of several
// segments or apart from each other are sums, for which y must be float32.
void DenseFromSparse(const BlockMatrix& s, std::span<const PackedWeight> weights, AnyMat y, ExecContext& ctx);
// DSD with S transposed. d_w [columns, K] += s^T x. x as above.
void AddTransposedSparseTimesDense(const BlockMatrix& s, ConstAnyMat x, std::span<const int32_t> x_rows, DType format,
                                   std::span<const MatView<float>> d_w, ExecContext& ctx);
// DDS. d_w [N, columns] += d_y^T s. d_y [num_rows, N].
void AddTransposedDenseTimesSparse(ConstAnyMat d_y, const BlockMatrix& s, DType format, std::span<const MatView<float>> d_w,
                                   ExecContext& ctx);

}  // namespace moe
