#include "moe/mixture/scores.h"

#include <algorithm>
#include <cmath>

#include "moe/base/check.h"

namespace moe {

float ScoreElements(RouterScore score, const float* z, int64_t E, float* s, const ExecContext& ctx) {
  float sum = 0;
  switch (score) {
    case RouterScore::kSigmoid:
      for (int64_t e = 0; e < E; ++e) s[e] = -z[e];
      ctx.kernels.exp_sum(s, 0, E, s);
      for (int64_t e = 0; e < E; ++e) s[e] = 1 / (1 + s[e]), sum += s[e];
      return sum;
    case RouterScore::kSqrtSoftplus:
      for (int64_t e = 0; e < E; ++e) {
        s[e] = std::sqrt(std::max(z[e], 0.0f) + std::log1p(std::exp(-std::fabs(z[e])))), sum += s[e];
      }
      return sum;
    case RouterScore::kRelu:
      for (int64_t e = 0; e < E; ++e) s[e] = std::max(z[e], 0.0f), sum += s[e];
      return sum;
    case RouterScore::kSoftmax:
    case RouterScore::kTopKSoftmax:
    case RouterScore::kSparsemixer:
      break;
  }
  MOE_CHECK(false, "{} is no function of one logit", NameIn(kRouterScores, score));
  return 0;
}

void ScoreElementsBackward(RouterScore score, const float* s, int64_t E, float* d) {
  switch (score) {
    case RouterScore::kSigmoid:
      for (int64_t e = 0; e < E; ++e) d[e] *= s[e] * (1 - s[e]);
      return;
    case RouterScore::kSqrtSoftplus:  // d s / d z = sigmoid(z) / (2 s), and sigmoid(z) = 1 - exp(-softplus(z))
      for (int64_t e = 0; e < E; ++e) d[e] *= s[e] == 0 ? 0 : -std::expm1(-s[e] * s[e]) / (2 * s[e]);
      return;
    case RouterScore::kRelu:
      for (int64_t e = 0; e < E; ++e) d[e] = s[e] > 0 ? d[e] : 0;
      return;
    case RouterScore::kSoftmax:
    case RouterScore::kTopKSoftmax:
    case RouterScore::kSparsemixer:
      break;
  }
  MOE_CHECK(false, "{} is no function of one logit", NameIn(kRouterScores, score));
}

void Sparsemix(const float* z, int64_t E, int64_t k, double jitter, int32_t* chosen, float* gate, float* near) {
  for (int64_t j = 0; j < k; ++j, near += E) {
    const bool second = j > 0;
    const auto gone = [&](int64_t e) { return second && e == chosen[0]; };
    int64_t best = gone(0) ? 1 : 0;
    for (int64_t e = best + 1; e < E; ++e) {
      if (!gone(e) && z[e] > z[best]) best = e;
    }
    const float max = z[best];
    float sum = 0;
    for (int64_t e = 0; e < E; ++e) {
      const float scale = std::max(std::fabs(z[e]), max);
      const bool is_near = !gone(e) && !((max - z[e]) / scale > static_cast<float>(2 * jitter));
      near[e] = is_near ? std::exp(z[e] - max) : 0;
      sum += near[e];
    }
    for (int64_t e = 0; e < E; ++e) near[e] /= sum;
    chosen[j] = static_cast<int32_t>(best);
    gate[j] = near[best];
  }
}

}  // namespace moe
