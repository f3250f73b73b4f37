#include "moe/ops/rope.h"

#include <cmath>

#include "moe/ops/chunks.h"

namespace moe {

RopeTable MakeRopeTable(int64_t context, int64_t head_width, double theta) {
  MOE_CHECK(context >= 0 && head_width >= 2 && head_width % 2 == 0 && theta > 0, "context {} head_width {} theta {}", context,
            head_width, theta);
  RopeTable table{.half = head_width / 2};
  const auto size = static_cast<size_t>(context * table.half);
  table.cos.resize(size), table.sin.resize(size);
  for (int64_t i = 0; i < table.half; ++i) {
    const double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_width));
    for (int64_t position = 0; position < context; ++position) {
      const double angle = static_cast<double>(position) * frequency;
      const auto at = static_cast<size_t>(position * table.half + i);
      table.cos[at] = static_cast<float>(std::cos(angle)), table.sin[at] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

void ApplyRope(const RopeTable& table, std::span<const int32_t> positions, RopeDirection direction, MatView<float> x,
               ExecContext& ctx) {
  const int64_t half = table.half, P = 2 * half;
  MOE_CHECK(half > 0 && x.cols % P == 0, "{} columns in heads of {}", x.cols, P);
  MOE_CHECK(static_cast<int64_t>(positions.size()) == x.rows, "{} positions for {} rows", positions.size(), x.rows);
  const int64_t context = static_cast<int64_t>(table.cos.size()) / half;
  for (const int32_t position : positions) {
    MOE_CHECK(position >= 0 && position < context, "position {} of {}", position, context);
  }
  const float sign = direction == RopeDirection::kForward ? 1.0f : -1.0f;
  ForEachChunk(x.rows, RowsPerChunk(x.cols), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t at = positions[static_cast<size_t>(t)] * half;
      for (int64_t head = 0; head < x.cols; head += P)
        ctx.kernels.rope(table.cos.data() + at, table.sin.data() + at, sign, half, x.row(t) + head);
    }
  });
}

}  // namespace moe
