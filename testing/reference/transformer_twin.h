#pragma once
// The transformer as its formulas read, one row and one head at a time, attention over explicit scores. Shares no arithmetic
// with the product; the MoE layers are MoeTwin. Real is double (values, finite differences) or Var (every gradient at once).

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "moe/model/model.h"
#include "testing/reference/moe_twin.h"
#include "testing/reference/tape.h"

namespace moe::test {

template <class Real>
class TransformerTwin {
 public:
  using Values = std::vector<Real>;

  ModelConfig config;
  std::map<std::string, Values> parameters;  // by the names and in the order of values of the ParameterStore
  bool drop = true;                          // capacity applies

  // ---- after Loss
  Real loss_sum = 0;                      // of the rows with a target
  Real aux_sum = 0;                       // coefficients applied, summed over layers
  Values row_loss;                        // [T]
  std::vector<MoeTwin<Real>> moe;         // of the MoE layers, in order
  std::vector<std::vector<Real>> logits;  // of every row

  // grad_scale * sum of cross-entropies + aux_scale * router losses: what ForwardBackward differentiates.
  Real Loss(const std::vector<RowInfo>& rows, const std::vector<int32_t>& targets, double grad_scale, double aux_scale) {
    using std::exp, std::log;
    std::vector<Values> x;
    for (const RowInfo& row : rows) x.push_back(RowOf(Get("embedding"), row.valid ? row.token_id : 0, config.hidden));
    loss_sum = aux_sum = Real(0);
    moe.clear();
    for (size_t l = 0; l < config.layers.size(); ++l) {
      const std::string prefix = fmt::format("layers.{}.", l);
      AddTo(x, Attention(prefix + "attention.", Norm(x, Get(prefix + "attention.norm")), rows));
      const std::vector<Values> normed = Norm(x, Get(prefix + "ffn_norm"));
      AddTo(x, config.layers[l].ffn == FfnKind::kDense ? Dense(prefix + "dense.", normed, config.layers[l].ffn_width)
                                                       : Moe(prefix + "moe.", normed, config.layers[l].moe, rows));
    }
    const std::vector<Values> last = Norm(x, Get("final_norm"));
    const Values& head = Get(config.tie_embeddings ? "embedding" : "head");
    row_loss.assign(rows.size(), Real(0));
    logits.clear();
    for (size_t t = 0; t < rows.size(); ++t) {
      logits.push_back(Times(head, config.vocab_size, last[t]));
      if (targets[t] < 0 || !rows[t].valid) continue;
      double max = -1e300;
      for (const Real& z : logits[t]) max = std::max(max, ValueOf(z));
      Real sum(0);
      for (const Real& z : logits[t]) sum += exp(z - Real(max));
      row_loss[t] = log(sum) + Real(max) - logits[t][static_cast<size_t>(targets[t])];
      loss_sum += row_loss[t];
    }
    return Real(grad_scale) * loss_sum + Real(aux_scale) * aux_sum;
  }

 private:
  const Values& Get(const std::string& name) const {
    const auto found = parameters.find(name);
    MOE_CHECK(found != parameters.end(), "no parameter {}", name);
    return found->second;
  }
  static Values RowOf(const Values& m, int64_t row, int64_t cols) {
    return {m.begin() + row * cols, m.begin() + (row + 1) * cols};
  }
  static void AddTo(std::vector<Values>& x, const std::vector<Values>& y) {
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t i = 0; i < x[t].size(); ++i) x[t][i] += y[t][i];
    }
  }
  // W x of W [N,K].
  static Values Times(const Values& w, int64_t N, const Values& x) {
    const auto K = static_cast<int64_t>(x.size());
    Values y;
    for (int64_t n = 0; n < N; ++n) y.push_back(DotOf(K, w.data() + n * K, 1, x.data(), 1));
    return y;
  }
  Values NormOne(const Real* x, const Values& weight) const {
    using std::sqrt;
    const auto n = static_cast<int64_t>(weight.size());
    const Real rms = sqrt(DotOf(n, x, 1, x, 1) / Real(static_cast<double>(n)) + Real(static_cast<double>(config.norm_epsilon)));
    Values y;
    for (int64_t i = 0; i < n; ++i) y.push_back(x[i] / rms * weight[static_cast<size_t>(i)]);
    return y;
  }
  std::vector<Values> Norm(const std::vector<Values>& x, const Values& weight) const {
    std::vector<Values> y;
    for (const Values& row : x) y.push_back(NormOne(row.data(), weight));
    return y;
  }
  // (x[i], x[i + P/2]) as a complex number, turned by position * theta^(-2i/P).
  void Rotate(int32_t position, Real* head) const {
    const int64_t P = config.head_width;
    for (int64_t i = 0; i < P / 2; ++i) {
      const double angle = position * std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(P));
      const Real a = head[i], b = head[i + P / 2];
      head[i] = a * Real(std::cos(angle)) - b * Real(std::sin(angle));
      head[i + P / 2] = b * Real(std::cos(angle)) + a * Real(std::sin(angle));
    }
  }
  // The heads [begin, begin + count) of one row's product, normed and rotated.
  Values TurnedHeads(const Values& qkv, int64_t begin, int64_t count, const std::string& norm, int32_t position) const {
    const int64_t P = config.head_width;
    Values heads(qkv.begin() + begin * P, qkv.begin() + (begin + count) * P);
    if (config.qk_norm == QkNorm::kWhole) heads = NormOne(heads.data(), Get(norm));
    for (int64_t h = 0; h < count; ++h) {
      if (config.qk_norm == QkNorm::kPerHead) {
        const Values one = NormOne(heads.data() + h * P, Get(norm));
        std::copy(one.begin(), one.end(), heads.begin() + h * P);
      }
      Rotate(position, heads.data() + h * P);
    }
    return heads;
  }
  std::vector<Values> Attention(const std::string& prefix, const std::vector<Values>& x,
                                const std::vector<RowInfo>& rows) const {
    using std::exp;
    const int64_t H = config.num_heads, G = config.num_kv_heads, P = config.head_width, D = config.hidden;
    std::vector<Values> q, k, v, y;
    for (size_t t = 0; t < x.size(); ++t) {
      const Values qkv = Times(Get(prefix + "qkv"), (H + 2 * G) * P, x[t]);
      const int32_t position = rows[t].valid ? rows[t].position : 0;
      q.push_back(TurnedHeads(qkv, 0, H, prefix + "q_norm", position));
      k.push_back(TurnedHeads(qkv, H, G, prefix + "k_norm", position));
      v.emplace_back(qkv.begin() + (H + G) * P, qkv.end());
    }
    for (size_t t = 0; t < x.size(); ++t) {
      Values heads(static_cast<size_t>(H * P), Real(0));
      for (int64_t h = 0; h < H && rows[t].valid; ++h) {
        const int64_t g = h / (H / G);
        std::vector<size_t> seen;
        Values weight;
        double max = -1e300;
        for (size_t s = 0; s <= t; ++s) {
          if (!rows[s].valid || rows[s].sequence != rows[t].sequence || rows[s].position > rows[t].position) continue;
          seen.push_back(s);
          weight.push_back(DotOf(P, q[t].data() + h * P, 1, k[s].data() + g * P, 1) *
                           Real(1 / std::sqrt(static_cast<double>(P))));
          max = std::max(max, ValueOf(weight.back()));
        }
        Real sum(0);
        for (Real& w : weight) w = exp(w - Real(max)), sum += w;
        for (size_t i = 0; i < seen.size(); ++i) {
          for (int64_t p = 0; p < P; ++p) {
            heads[static_cast<size_t>(h * P + p)] += weight[i] / sum * v[seen[i]][static_cast<size_t>(g * P + p)];
          }
        }
      }
      y.push_back(Times(Get(prefix + "out"), D, heads));
    }
    return y;
  }
  // Gates and ups interleaved in groups of 16, as the ParameterStore has them.
  std::vector<Values> Dense(const std::string& prefix, const std::vector<Values>& x, int64_t F) const {
    using std::exp;
    std::vector<Values> y;
    for (const Values& row : x) {
      const Values gate_up = Times(Get(prefix + "gate_up"), 2 * F, row);
      Values hidden;
      for (int64_t f = 0; f < F; ++f) {
        const Real gate = gate_up[static_cast<size_t>(f / 16 * 32 + f % 16)];
        hidden.push_back(gate / (Real(1) + exp(-gate)) * gate_up[static_cast<size_t>(f / 16 * 32 + f % 16 + 16)]);
      }
      y.push_back(Times(Get(prefix + "down"), config.hidden, hidden));
    }
    return y;
  }
  std::vector<Values> Moe(const std::string& prefix, const std::vector<Values>& x, const MoeConfig& spec,
                          const std::vector<RowInfo>& rows) {
    MoeTwin<Real> layer;
    layer.config = spec;
    layer.T = static_cast<int64_t>(x.size()), layer.D = config.hidden;
    int64_t tokens = 0;
    for (size_t t = 0; t < x.size(); ++t) {
      layer.x.insert(layer.x.end(), x[t].begin(), x[t].end());
      layer.valid.push_back(rows[t].valid);
      tokens += rows[t].valid ? 1 : 0;
    }
    if (drop && spec.router.capacity.factor > 0) {
      layer.capacity = ExpertCapacity(spec.router, spec.router.capacity.factor, tokens);
    }
    layer.w = MoeTwinWeights<Real>::Gather(spec, [&](const std::string& name) {
      const auto found = parameters.find(prefix + name);
      return found == parameters.end() ? Values() : found->second;
    });
    layer.Forward();
    aux_sum += Real(spec.router.balance_loss) * layer.balance_loss + Real(spec.router.z_loss) * layer.z_loss;
    std::vector<Values> y;
    for (int64_t t = 0; t < layer.T; ++t) y.push_back(RowOf(layer.y, t, config.hidden));
    moe.push_back(std::move(layer));
    return y;
  }
};

}  // namespace moe::test
