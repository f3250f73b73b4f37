#pragma once
// Router scores that are functions of one logit each: sigmoid, sqrt_softplus, relu. Softmaxes are routing.cc's own.

#include <cstdint>

#include "moe/mixture/router_config.h"
#include "moe/ops/exec_context.h"

namespace moe {

// s [E] from finite logits z [E]; returns their sum. s may be z.
float ScoreElements(RouterScore score, const float* z, int64_t E, float* s, const ExecContext& ctx);
// d [E]: by s on entry, by z on return.
void ScoreElementsBackward(RouterScore score, const float* s, int64_t E, float* d);

// Sparsemixer's choices of one token, k of 1 or 2: chosen [k], gate [k]; near [k,E], each choice's softmax over the experts
// near its largest logit, 0 elsewhere. The gate of choice j is near[j][chosen[j]]. An expert is near the largest logit m when
// (m - z) / max(|z|, m) <= 2 jitter. (Phi-3.5's evaluation; its training samples, which we do not.)
void Sparsemix(const float* z, int64_t E, int64_t k, double jitter, int32_t* chosen, float* gate, float* near);

}  // namespace moe
