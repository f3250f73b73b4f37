#pragma once

#include <span>

#include "moe/ops/packed_parameter.h"

namespace moe {

// A parameter as one step of AdamW sees it.
struct AdamwTensor {
  Parameter* parameter = nullptr;     // value, and gradient, which is 0 afterwards: the next step's sums begin there
  PackedParameter* packed = nullptr;  // of this parameter, already packed once; null: nobody multiplies with it
  std::span<float> m, v;              // moments, as the value
  float weight_decay = 0;
  std::span<const int64_t> tokens_per_expert;  // [E] not empty: values, moments and packs of experts with 0 stay as they are
};

// Rows of at most so many values are worked through whole, wider ones block by block, which takes longer.
inline constexpr int64_t kAdamwWholeRows = 2048;

// One step over all tensors (Loshchilov & Hutter 2019), of step's weight_decay nothing is read. One pass over the memory: block
// by block, the packs are written while the new values are in the cache. The same, bit for bit, as the step elementwise and
// PackedParameter::Repack after it, for any number of threads.
void AdamwPass(const AdamwStep& step, std::span<const AdamwTensor> tensors, ExecContext& ctx);

}  // namespace moe
