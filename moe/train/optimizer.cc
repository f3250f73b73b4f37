#include "moe/train/optimizer.h"

#include <cmath>

#include "moe/base/check.h"
#include "moe/ops/elementwise.h"

namespace moe {
namespace {

bool AllFinite(std::span<const float> values) {
  float sum = 0;  // x * 0 is 0, or NaN where x is NaN or infinite
  for (const float x : values) sum += x * 0.0f;
  return sum == 0;
}

}  // namespace

void Optimizer::Reset(const ParameterStore& store) {
  m.clear();
  v.clear();
  for (const Parameter& parameter : store.all()) {
    m.emplace_back(parameter.value.shape());
    v.emplace_back(parameter.value.shape());
  }
  steps_done = 0;
}

double GlobalGradNorm(const ParameterStore& store, ExecContext& ctx) {
  double sum = 0;
  for (const Parameter& parameter : store.all()) sum += SumSquares(parameter.grad.span(), ctx);
  return std::sqrt(sum);
}

std::string FirstNonFiniteValue(const ParameterStore& store) {
  for (const Parameter& parameter : store.all()) {
    if (!AllFinite(parameter.value.span())) return parameter.name;
  }
  return "";
}

std::string FirstNonFiniteGrad(const ParameterStore& store) {
  for (auto parameter = store.all().rbegin(); parameter != store.all().rend(); ++parameter) {
    if (!AllFinite(parameter->grad.span())) return parameter->name;
  }
  return "";
}

void ApplyAdamw(Optimizer& optimizer, std::span<const OptimizedParameter> parameters, double lr, double grad_norm,
                ExecContext& ctx) {
  MOE_CHECK(optimizer.m.size() == parameters.size(), "{} moments, {} parameters", optimizer.m.size(), parameters.size());
  MOE_CHECK(std::isfinite(grad_norm) && grad_norm >= 0, "gradient norm {}", grad_norm);
  Arena::Scope scope(ctx.arena);
  const auto t = static_cast<double>(++optimizer.steps_done);
  const double clip = optimizer.clip;
  const AdamwStep step{.lr = static_cast<float>(lr),
                       .beta1 = static_cast<float>(optimizer.beta1),
                       .beta2 = static_cast<float>(optimizer.beta2),
                       .epsilon = static_cast<float>(optimizer.epsilon),
                       .correction1 = static_cast<float>(1 - std::pow(optimizer.beta1, t)),
                       .correction2 = static_cast<float>(1 - std::pow(optimizer.beta2, t)),
                       .grad_scale = clip > 0 && grad_norm > clip ? static_cast<float>(clip / grad_norm) : 1.0f};
  const auto tensors = ctx.arena.Alloc<AdamwTensor>(std::ssize(parameters));
  for (size_t i = 0; i < parameters.size(); ++i) {
    const OptimizedParameter& p = parameters[i];
    tensors[i] = {.parameter = p.parameter,
                  .packed = p.packed,
                  .m = optimizer.m[i].span(),
                  .v = optimizer.v[i].span(),
                  .weight_decay = p.parameter->decay ? static_cast<float>(optimizer.weight_decay) : 0.0f,
                  .tokens_per_expert = p.tokens_per_expert};
  }
  AdamwPass(step, tensors, ctx);
}

}  // namespace moe
