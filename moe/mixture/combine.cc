#include "moe/mixture/combine.h"

#include <algorithm>

namespace moe {
namespace {

constexpr int64_t kChunk = 32;  // tokens
constexpr int64_t kMostTerms = 16;

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

void Combine(const Routing& routing, std::span<const int32_t> slot_row, std::span<const float> gate, ConstAnyMat rows,
             MatView<const float> base, std::span<const int32_t> base_row, MatView<float> y, ExecContext& ctx) {
  const int64_t D = y.cols;
  MOE_CHECK(y.rows + 1 == static_cast<int64_t>(routing.slot_begin.size()), "y has {} rows", y.rows);
  MOE_CHECK(slot_row.size() == routing.expert.size(), "{} rows for {} slots", slot_row.size(), routing.expert.size());
  const auto combine = [&]<class T>(const T*, auto kernel) {
    ForEachToken(routing, ctx, [&](int64_t t, size_t begin, size_t end, int) {
      const int64_t from = base.empty() ? -1 : base_row.empty() ? t : base_row[static_cast<size_t>(t)];
      const float* sum = from >= 0 ? base.row(from) : nullptr;
      do {  // kMostTerms at a time
        int64_t count = 0;
        float weight[kMostTerms];
        const T* row[kMostTerms];
        for (; begin < end && count < kMostTerms; ++begin) {
          if (slot_row[begin] < 0) continue;
          weight[count] = gate.empty() ? 1.0f : gate[begin];
          row[count++] = static_cast<const T*>(rows.row(slot_row[begin]));
        }
        kernel(count, weight, row, sum, D, y.row(t));
        sum = y.row(t);
      } while (begin < end);
    });
  };
  if (rows.dtype == DType::kBf16) return combine(static_cast<const Bf16*>(nullptr), ctx.kernels.combine_bf16);
  combine(static_cast<const float*>(nullptr), ctx.kernels.combine_f32);
}

void CombineBackward(const Routing& routing, std::span<const int32_t> slot_row, std::span<const float> gate, ConstAnyMat rows,
                     MatView<const float> d_y, std::span<float> d_gate, AnyMat d_rows, ExecContext& ctx) {
  const int64_t D = d_y.cols;
  const bool bf16 = d_rows.dtype == DType::kBf16;
  Arena::Scope scope(ctx.arena);
  const auto scaled = ctx.arena.Alloc<float>(bf16 ? D * ctx.pool.num_threads() : 0);  // a row of each thread
  ForEachToken(routing, ctx, [&](int64_t t, size_t begin, size_t end, int thread) {
    const float* d = d_y.row(t);
    for (size_t s = begin; s < end; ++s) {
      if (!d_gate.empty() && slot_row[s] < 0) d_gate[s] = 0;
      if (slot_row[s] < 0) continue;
      if (!d_gate.empty())
        d_gate[s] = rows.dtype == DType::kBf16 ? ctx.kernels.dot_bf16(static_cast<const Bf16*>(rows.row(slot_row[s])), d, D)
                                               : ctx.kernels.dot(static_cast<const float*>(rows.row(slot_row[s])), d, D);
      if (d_rows.empty()) continue;
      float* out = bf16 ? scaled.data() + thread * D : static_cast<float*>(d_rows.row(slot_row[s]));
      const float weight = gate.empty() ? 1.0f : gate[s];
      ctx.kernels.combine_f32(1, &weight, &d, nullptr, D, out);
      if (bf16) ctx.kernels.to_bf16(out, D, static_cast<Bf16*>(d_rows.row(slot_row[s])));
    }
  });
}

void GatedRows(const Routing& routing, std::span<const int32_t> slot_row, MatView<const float> x, AnyMat rows,
               ExecContext& ctx) {
  CombineBackward(routing, slot_row, routing.gate, {}, x, {}, rows, ctx);
}

}  // namespace moe
