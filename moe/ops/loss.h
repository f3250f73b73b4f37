#pragma once

#include <span>

#include "moe/ops/exec_context.h"
#include "moe/tensor/mat_view.h"

namespace moe {

// Cross-entropy of each row against its target. logits [T,V]; targets [T], -1: the row does not count; loss [T] in nats (0 for
// a row that does not count). With grad_scale != 0 logits are overwritten by grad_scale * (softmax(logits) - onehot), zeros for
// rows that do not count.
void CrossEntropy(MatView<float> logits, std::span<const int32_t> targets, float grad_scale, std::span<float> loss,
                  ExecContext& ctx);

}  // namespace moe
