#pragma once
// Work cut at absolute offsets: where a cut lies never depends on the number of threads.

#include <algorithm>
#include <cstdint>

#include "moe/ops/exec_context.h"

namespace moe {

inline int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// fn(begin, end, thread) for the pieces of [0, n), `chunk` long but for the last, in parallel.
template <class F>
void ForEachChunk(int64_t n, int64_t chunk, ExecContext& ctx, F&& fn) {
  ctx.pool.ParallelFor(CeilDiv(n, chunk), [&](int64_t i, int thread) { fn(i * chunk, std::min(n, (i + 1) * chunk), thread); });
}

// Rows of a piece of a [T, cols] matrix: enough work to be worth handing out.
inline int64_t RowsPerChunk(int64_t cols) {
  constexpr int64_t kChunkElements = 8192;
  return std::max<int64_t>(1, kChunkElements / std::max<int64_t>(1, cols));
}

}  // namespace moe
