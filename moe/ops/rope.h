#pragma once

#include <span>
#include <vector>

#include "moe/ops/exec_context.h"
#include "moe/tensor/mat_view.h"

namespace moe {

// cos and sin of position * theta^(-2i/P), i in [0, P/2), for every position of the context. (Su et al. 2021; computed in
// double.)
struct RopeTable {
  int64_t half = 0;             // P/2
  std::vector<float> cos, sin;  // [C, P/2]
};
RopeTable MakeRopeTable(int64_t context, int64_t head_width, double theta);

enum class RopeDirection : uint8_t { kForward, kBackward };  // backward: the rotation undone, which is its own gradient

// Rotates, in place, each head of each row by the row's position. x [T, heads*P]; positions [T].
void ApplyRope(const RopeTable& table, std::span<const int32_t> positions, RopeDirection direction, MatView<float> x,
               ExecContext& ctx);

}  // namespace moe
