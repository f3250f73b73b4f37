#include <algorithm>
#include <cstring>
#include <limits>

#include "moe/mixture/route_row.h"
#include "moe/mixture/router_losses.h"
#include "moe/mixture/scores.h"
#include "moe/ops/chunks.h"

namespace moe {
namespace {

constexpr int64_t kChunk = 64;  // tokens

}  // namespace

void RouteBackward(const RouterConfig& config, const Routing& routing, const RouterSaved& saved,
                   std::span<const int32_t> slot_row, std::span<const float> d_gate, float loss_scale, MatView<float> d_logits,
                   ExecContext& ctx) {
  const int64_t T = saved.probs.rows, E = config.num_experts;
  MOE_CHECK(d_logits.rows == T && d_logits.cols == E, "d_logits [{},{}], expected [{},{}]", d_logits.rows, d_logits.cols, T, E);
  MOE_CHECK(d_gate.size() == routing.gate.size(), "{} gate gradients for {} slots", d_gate.size(), routing.gate.size());
  MOE_CHECK(!config.normalize_after_drop || slot_row.size() == routing.gate.size(), "{} rows for {} slots", slot_row.size(),
            routing.gate.size());
  Arena::Scope scope(ctx.arena);
  const auto n = static_cast<double>(std::max<int64_t>(routing.aux.num_tokens, 1));
  const ProbGradients losses = LossGradients(config, saved, routing, loss_scale, ctx);
  const double z_factor = loss_scale * config.z_loss * 2 / n;  // d lse^2 / d z = 2 lse softmax(z)
  const bool of_chosen = IsSoftmaxOfChosen(config), elementwise = IsElementwise(config.score);
  const bool sparsemixer = config.score == RouterScore::kSparsemixer;
  const auto scale = static_cast<float>(config.scale);
  const auto shares = [&](int64_t s) { return !config.normalize_after_drop || slot_row[static_cast<size_t>(s)] >= 0; };
  ctx.pool.ParallelFor(CeilDiv(T, kChunk), [&](int64_t chunk, int) {
    size_t sequence = 0;
    for (int64_t t = chunk * kChunk; t < std::min(T, (chunk + 1) * kChunk); ++t) {
      float* d_z = d_logits.row(t);
      const int64_t s0 = routing.slot_begin[static_cast<size_t>(t)], s1 = routing.slot_begin[static_cast<size_t>(t) + 1];
      const float* p = saved.probs.row(t);
      const float score_sum = saved.score_sum[static_cast<size_t>(t)];
      const auto z_shift = static_cast<float>(z_factor * saved.log_sum_exp[static_cast<size_t>(t)]);
      if (score_sum == 0) {  // padding, whose softmax is 0, or no score above 0
        for (int64_t e = 0; e < E; ++e) d_z[e] = saved.softmax.empty() ? 0 : z_shift * saved.softmax(t, e);
        continue;
      }
      std::memcpy(d_z, losses.Of(t, sequence), static_cast<size_t>(E) * sizeof(float));
      const int32_t* chosen = routing.expert.data();
      const float* gate = routing.gate.data();
      // By the chosen's scores: g = scale * s / N, N their sum (and epsilon), or 1.
      const auto add_gates = [&] {
        float norm = 0, mean = 0;
        for (int64_t s = s0; config.normalize && s < s1; ++s) {
          if (shares(s)) norm += p[chosen[s]] * score_sum, mean += gate[s] * d_gate[static_cast<size_t>(s)];
        }
        if (config.normalize && norm < std::numeric_limits<float>::min()) return;  // forward made the gates 0
        norm = config.normalize ? norm + static_cast<float>(config.normalize_epsilon) : 1;
        for (int64_t s = s0; s < s1; ++s) {
          if (shares(s)) d_z[chosen[s]] += (scale * d_gate[static_cast<size_t>(s)] - mean) / norm;
        }
      };
      if (elementwise) {
        const float mean = ctx.kernels.dot(p, d_z, E);  // p = s / sum(s)
        for (int64_t e = 0; e < E; ++e) d_z[e] = (d_z[e] - mean) / score_sum;
        add_gates();
        for (int64_t e = 0; e < E; ++e) {  // from p to s, in d_z's place: d_z by z
          float d = d_z[e];
          const float s = p[e] * score_sum;
          ScoreElementsBackward(config.score, &s, 1, &d);
          d_z[e] = saved.softmax.empty() ? d : d + z_shift * saved.softmax(t, e);
        }
        continue;
      }
      if (!of_chosen && !sparsemixer) add_gates();
      // Through the softmax: p_e (d_e - <p, d>).
      const float shift = z_shift - ctx.kernels.dot(p, d_z, E);
      for (int64_t e = 0; e < E; ++e) d_z[e] = p[e] * (d_z[e] + shift);
      if (of_chosen) {  // g = scale * softmax over those that share it: g_j (d_j - <g, d> / scale); dropped ones have d = 0
        float mean = 0;
        for (int64_t s = s0; s < s1; ++s) {
          if (shares(s)) mean += gate[s] * d_gate[static_cast<size_t>(s)];
        }
        mean /= scale;
        for (int64_t s = s0; s < s1; ++s) {
          if (shares(s)) d_z[chosen[s]] += gate[s] * (d_gate[static_cast<size_t>(s)] - mean);
        }
      }
      for (int64_t s = s0; sparsemixer && s < s1; ++s) {  // each gate is one place of a softmax of its own
        const float* near = saved.near.row(s);
        const float d = gate[s] * d_gate[static_cast<size_t>(s)];
        for (int64_t e = 0; e < E; ++e) d_z[e] -= d * near[e];
        d_z[chosen[s]] += d;
      }
    }
  });
  AddLoadGradient(config, saved, routing, loss_scale, d_logits, ctx);
}

}  // namespace moe
