#include "moe/mixture/combine.h"

#include <algorithm>
#include <cstring>

namespace moe {
namespace {

constexpr int64_t kChunk = 32;  // tokens

template <class F>
void ForEachToken(const Routing& routing, ExecContext& ctx, F&& fn) {
  const int64_t T = static_cast<int64_t>(routing.slot_begin.size()) - 1;
  ctx.pool.ParallelFor((T + kChunk - 1) / kChunk, [&](int64_t chunk, int thread) {
    for (int64_t t = chunk * kChunk; t < std::min(T, (chunk + 1) * kChunk); ++t) {
      fn(t, static_cast<size_t>(routing.slot_begin[static_cast<size_t>(t)]),
         static_cast<size_t>(routing.slot_begin[static_cast<size_t>(t) + 1]), thread);
    }
  });
}

}  // namespace

void Combine(const Routing& routing, std::span<const int32_t> slot_row, std::span<const float> gate, MatView<const float> rows,
             MatView<const float> base, std::span<const int32_t> base_row, MatView<float> y, ExecContext& ctx) {
  const int64_t D = y.cols;
  const size_t row_bytes = static_cast<size_t>(D) * sizeof(float);
  MOE_CHECK(y.rows + 1 == static_cast<int64_t>(routing.slot_begin.size()), "y has {} rows", y.rows);
  MOE_CHECK(slot_row.size() == routing.expert.size(), "{} rows for {} slots", slot_row.size(), routing.expert.size());
  ForEachToken(routing, ctx, [&](int64_t t, size_t begin, size_t end, int) {
    float* out = y.row(t);
    const int64_t from = base.empty() ? -1 : base_row.empty() ? t : base_row[static_cast<size_t>(t)];
    if (from >= 0) {
      std::memcpy(out, base.row(from), row_bytes);
    } else {
      std::memset(out, 0, row_bytes);
    }
    for (size_t s = begin; s < end; ++s) {
      if (slot_row[s] >= 0) ctx.kernels.axpy(gate.empty() ? 1.0f : gate[s], rows.row(slot_row[s]), D, out);
    }
  });
}

void CombineBackward(const Routing& routing, std::span<const int32_t> slot_row, MatView<const float> rows,
                     MatView<const float> d_y, std::span<float> d_gate, AnyMat d_rows, ExecContext& ctx) {
  const int64_t D = d_y.cols;
  const bool bf16 = d_rows.dtype == DType::kBf16;
  Arena::Scope scope(ctx.arena);
  const auto scaled = ctx.arena.Alloc<float>(bf16 ? D * ctx.pool.num_threads() : 0);  // a row of each thread
  ForEachToken(routing, ctx, [&](int64_t t, size_t begin, size_t end, int thread) {
    const float* d = d_y.row(t);
    for (size_t s = begin; s < end; ++s) {
      if (slot_row[s] < 0) {
        d_gate[s] = 0;
        continue;
      }
      d_gate[s] = ctx.kernels.dot(rows.row(slot_row[s]), d, D);
      float* out = bf16 ? scaled.data() + thread * D : static_cast<float*>(d_rows.row(slot_row[s]));
      std::memcpy(out, d, static_cast<size_t>(D) * sizeof(float));
      ctx.kernels.scale(routing.gate[s], D, out);
      if (bf16) ctx.kernels.to_bf16(out, D, static_cast<Bf16*>(d_rows.row(slot_row[s])));
    }
  });
}

}  // namespace moe
