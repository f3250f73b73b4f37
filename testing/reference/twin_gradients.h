#pragma once
// Every gradient of the transformer twin, and how exact a float32 program can be expected to be.

#include <map>
#include <string>
#include <vector>

#include "testing/reference/transformer_twin.h"
#include "testing/tiny_model.h"

namespace moe::test {

// Values per slice: of one expert, or of the whole tensor.
inline int64_t SliceSize(const Parameter& p) {
  return p.experts > 0 ? p.value.size() / p.experts : p.value.size();
}

inline double MaxAbs(const double* x, int64_t n) {
  double max = 0;
  for (int64_t i = 0; i < n; ++i) max = std::max(max, std::abs(x[i]));
  return max;
}

template <class Real>
TransformerTwin<Real> MakeTwin(const Model& model, Tape* tape) {
  TransformerTwin<Real> twin;
  twin.config = model.config();
  for (const Parameter& p : model.parameters().all()) {
    std::vector<Real>& values = twin.parameters[p.name];
    if constexpr (std::is_same_v<Real, Var>) {
      values = tape->Inputs(p.value.span());
    } else {
      values.assign(p.value.span().begin(), p.value.span().end());
    }
  }
  return twin;
}

struct TwinGradients {
  double loss_sum = 0, aux_sum = 0, objective = 0;
  int64_t num_dropped = 0;
  std::map<std::string, std::vector<double>> values;
};

// Of grad_scale * loss + aux_scale * router losses, as ForwardBackward has them.
inline TwinGradients Differentiate(const Model& model, const TinyBatch& batch, double grad_scale, double aux_scale,
                                   Tape::Precision precision) {
  Tape tape(precision);
  auto twin = MakeTwin<Var>(model, &tape);
  const Var objective = twin.Loss(batch.rows, batch.targets, grad_scale, aux_scale);
  TwinGradients out{.loss_sum = twin.loss_sum.value, .aux_sum = twin.aux_sum.value, .objective = objective.value};
  for (const auto& layer : twin.moe) out.num_dropped += layer.num_dropped;
  for (const auto& [name, inputs] : twin.parameters) out.values[name] = tape.Gradient(objective, inputs);
  return out;
}

// What a plain float32 program is off by, relative to the largest gradient of a slice; the largest over all slices. It measures
// the condition of this very case, so nothing is tuned: the product may be off by kTimesFloat32 times that.
inline constexpr double kTimesFloat32 = 4;
inline double Float32Error(const Model& model, const TwinGradients& exact, const TwinGradients& rounded) {
  double worst = 0;
  for (const Parameter& p : model.parameters().all()) {
    const std::vector<double>&want = exact.values.at(p.name), &got = rounded.values.at(p.name);
    std::vector<double> error;
    for (size_t i = 0; i < want.size(); ++i) error.push_back(got[i] - want[i]);
    for (int64_t begin = 0, n = SliceSize(p); begin < p.value.size(); begin += n) {
      const double scale = MaxAbs(want.data() + begin, n);
      if (scale > 0) worst = std::max(worst, MaxAbs(error.data() + begin, n) / scale);
    }
  }
  return worst;
}

}  // namespace moe::test
