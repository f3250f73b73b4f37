#pragma once
// A policy on given logits, in the product and in its twin.

#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/base/rng.h"
#include "moe/mixture/capacity.h"
#include "moe/mixture/dispatch_plan.h"
#include "testing/reference/policy_twin.h"
#include "tests/mixture/router_fixture.h"

namespace moe::test {

inline constexpr uint64_t kChanceKey = 77, kNoiseKey = 78;

// One run of the product.
struct PolicyRun {
  std::vector<int32_t> slot_begin, expert, slot_row;
  std::vector<float> gate, p, d_logits;
  RouterAux aux;
  std::vector<int64_t> load;
};

struct PolicyInput {
  std::vector<float> logits, bias;
  std::vector<uint8_t> valid;
  std::vector<int32_t> ids, sequence_begin;
  std::vector<int64_t> tokens_before;
};
inline RouteInput RouteInputOf(const RouterConfig& config, const PolicyInput& in) {
  const int64_t E = config.num_experts;
  return {.logits = {in.logits.data(), static_cast<int64_t>(in.logits.size()) / E, E},
          .valid = in.valid,
          .selection_bias = in.bias,
          .ids = in.ids,
          .sequence_begin = in.sequence_begin,
          .tokens_before = in.tokens_before,
          .training = true,
          .key = kNoiseKey};
}

inline PolicyInput RandomInput(const RouterConfig& config, int64_t T, bool padding, Rng& rng) {
  PolicyInput in{.logits = NormalFloats(T * config.num_experts, rng, 2)};
  if (config.selects_by_bias()) in.bias = NormalFloats(config.num_experts, rng, 0.3);
  if (config.selection == RouterSelection::kHash) in.ids = RandomInts(T, 50, rng);
  for (int64_t t = 0; padding && t < T; ++t) in.valid.push_back(rng.Below(4) != 0);
  in.sequence_begin = {0, static_cast<int32_t>(T / 3), static_cast<int32_t>(T / 3), static_cast<int32_t>(T / 2),
                       static_cast<int32_t>(T)};
  // None, of the first micro-batch of a step, or some.
  for (int64_t e = 0; e < config.num_experts && T % 3 > 0; ++e) in.tokens_before.push_back(T % 3 == 1 ? 0 : rng.Below(20));
  return in;
}

inline std::vector<double> GateGradients(const std::vector<int32_t>& slot_row, Rng& rng) {
  std::vector<double> d;
  for (const int32_t row : slot_row) d.push_back(row < 0 ? 0 : static_cast<float>(rng.Normal()));
  return d;
}

inline PolicyRun RunProduct(const RouterConfig& config, const PolicyInput& in, Rng& rng, std::vector<double>* d_gate,
                            int threads = 1) {
  Router r(config, threads);
  RouterSaved saved;
  const int64_t E = config.num_experts, T = static_cast<int64_t>(in.logits.size()) / E;
  Routing routing = Route(config, RouteInputOf(config, in), &saved, r.ctx).value();
  const auto kept = KeepWithinCapacity(config, config.capacity.factor, routing, in.sequence_begin, kChanceKey, r.ctx);
  const DispatchPlan plan = BuildDispatchPlan(routing, E, kept, r.ctx);
  NormalizeKept(config, plan.slot_row, routing, r.ctx);
  PolicyRun got{.slot_begin = {routing.slot_begin.begin(), routing.slot_begin.end()},
                .expert = {routing.expert.begin(), routing.expert.end()},
                .slot_row = {plan.slot_row.begin(), plan.slot_row.end()},
                .gate = Floats(routing.gate),
                .p = Floats(std::span(saved.probs.data, static_cast<size_t>(saved.probs.size()))),
                .aux = routing.aux,
                .load = {routing.aux.tokens_per_expert.begin(), routing.aux.tokens_per_expert.end()}};
  if (d_gate->empty()) *d_gate = GateGradients(got.slot_row, rng);
  const std::vector<float> d(d_gate->begin(), d_gate->end());
  got.d_logits.assign(in.logits.size(), -7.0f);
  RouteBackward(config, routing, saved, plan.slot_row, d, 0.5f, {got.d_logits.data(), T, E}, r.ctx);
  return got;
}

// got: whose choices are taken where they are no function of a token's own logits: no gradient goes through them, and they have
// tests of their own (sinkhorn_test.cc, expert_choice_test.cc, selection_test.cc).
template <class Real>
PolicyTwin<Real> TwinOf(const RouterConfig& config, const PolicyInput& in, const PolicyRun& got) {
  PolicyTwin<Real> twin{.config = config, .factor = config.capacity.factor};
  twin.logits.assign(in.logits.begin(), in.logits.end());
  twin.valid = in.valid, twin.sequence_begin = in.sequence_begin, twin.tokens_before = in.tokens_before;
  twin.bias.assign(in.bias.begin(), in.bias.end());
  const auto E = static_cast<size_t>(config.num_experts);
  for (size_t i = 0; config.load_loss > 0 && i < in.logits.size(); i += E) {
    Rng rng(kNoiseKey, i / E);
    for (size_t e = 0; e < E; ++e) {
      twin.noise.push_back(static_cast<float>(config.noise_scale * rng.Normal()));
    }
  }
  const bool later = config.noise == RouterNoise::kGumbelLater;
  for (size_t i = 0; (later || config.noise == RouterNoise::kGumbel) && i < in.logits.size(); i += E) {
    Rng rng(kNoiseKey, i / E);
    for (size_t e = 0; e < E; ++e) {
      twin.choice_noise.push_back(static_cast<float>(-config.noise_scale * std::log(-std::log(rng.Uniform() + 0x1p-54))));
    }
    const auto row = in.logits.begin() + static_cast<int64_t>(i);
    const auto best = static_cast<size_t>(std::max_element(row, row + config.num_experts) - row);
    if (later) twin.choice_noise[i + best] = INFINITY;
  }
  if (config.selection != RouterSelection::kTopK) twin.given = ChoicesOf(got.slot_begin, got.expert);
  for (uint64_t slot = 0; slot < in.logits.size(); ++slot) {
    twin.chance.push_back(static_cast<double>(MixBits(kChanceKey ^ MixBits(slot + 1)) >> 11));
  }
  twin.Run();
  return twin;
}

}  // namespace moe::test
