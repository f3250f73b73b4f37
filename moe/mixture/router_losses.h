#pragma once
// Losses that are functions of p [T,E] and of counts, which are constants: their values and their gradients by p.

#include <cstdint>
#include <span>

#include "moe/mixture/routing.h"

namespace moe {

// Fills aux.losses of those with a coefficient. saved as Route has filled it.
void MeasureLosses(const RouterConfig& config, const RouterSaved& saved, Routing& routing, ExecContext& ctx);

// Gradients by p, times their coefficients and loss_scale: rows [begin[i], begin[i+1]) of p all have row i of by_p [.,E].
struct ProbGradients {
  std::span<const int32_t> begin;
  MatView<float> by_p;

  // Of row t, which is at or after the rows of `from`, the last answer.
  const float* Of(int64_t t, size_t& from) const {
    while (t >= begin[from + 1]) ++from;
    return by_p.row(static_cast<int64_t>(from));
  }
};
ProbGradients LossGradients(const RouterConfig& config, const RouterSaved& saved, const Routing& routing, float loss_scale,
                            ExecContext& ctx);

// d_logits [T,E] += the load loss's gradient. Only the noise is a constant: a chance falls as the logit m that it is compared
// with rises, and that one is a logit too, as autograd has it in the paper's code (tensor2tensor), FastMoE and Tutel.
void AddLoadGradient(const RouterConfig& config, const RouterSaved& saved, const Routing& routing, float loss_scale,
                     MatView<float> d_logits, ExecContext& ctx);

}  // namespace moe
