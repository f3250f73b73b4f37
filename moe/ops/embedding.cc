#include "moe/ops/embedding.h"

#include <cstring>

#include "moe/ops/chunks.h"

namespace moe {
namespace {

void CheckIds(std::span<const int32_t> ids, int64_t V) {
  for (const int32_t id : ids) MOE_CHECK(id >= 0 && id < V, "id {} of {}", id, V);
}

}  // namespace

void EmbeddingForward(MatView<const float> table, std::span<const int32_t> ids, MatView<float> out, ExecContext& ctx) {
  MOE_CHECK(out.rows == static_cast<int64_t>(ids.size()) && out.cols == table.cols, "out [{},{}], expected [{},{}]", out.rows,
            out.cols, ids.size(), table.cols);
  CheckIds(ids, table.rows);
  ForEachChunk(out.rows, RowsPerChunk(out.cols), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      std::memcpy(out.row(t), table.row(ids[static_cast<size_t>(t)]), static_cast<size_t>(out.cols) * sizeof(float));
    }
  });
}

void EmbeddingBackward(std::span<const int32_t> ids, MatView<const float> d_out, MatView<float> d_table, ExecContext& ctx) {
  MOE_CHECK(d_out.rows == static_cast<int64_t>(ids.size()) && d_out.cols == d_table.cols, "d_out [{},{}], expected [{},{}]",
            d_out.rows, d_out.cols, ids.size(), d_table.cols);
  CheckIds(ids, d_table.rows);
  // Pieces are column blocks: each walks all rows in order, and no two write the same place.
  constexpr int64_t kColumns = 64;
  ForEachChunk(d_out.cols, kColumns, ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = 0; t < d_out.rows; ++t) {
      ctx.kernels.add(d_out.row(t) + begin, end - begin, d_table.row(ids[static_cast<size_t>(t)]) + begin);
    }
  });
}

}  // namespace moe
