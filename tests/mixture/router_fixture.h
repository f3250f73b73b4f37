#pragma once
// A router alone: logits in, routing and logit gradients out.

#include <gtest/gtest.h>

#include <vector>

#include "moe/mixture/routing.h"
#include "testing/matchers.h"
#include "testing/random.h"

namespace moe::test {

template <class T>
std::vector<float> Floats(std::span<T> x) {
  return {x.begin(), x.end()};
}

struct Router {
  explicit Router(const RouterConfig& router_config, int threads = 1,
                  const KernelTable* kernels = SupportedKernelTables().front())
      : config(router_config), pool(threads), ctx{pool, arena, *kernels} {}

  // The routing lives as long as this, or until the arena is reset.
  Result<Routing> Run(const std::vector<float>& logits, const std::vector<uint8_t>& valid = {}, RouterSaved* saved = nullptr) {
    const int64_t E = config.num_experts;
    return Route(config, {.logits = {logits.data(), static_cast<int64_t>(logits.size()) / E, E}, .valid = valid}, saved, ctx);
  }
  std::vector<float> Back(const Routing& routing, const RouterSaved& saved, const std::vector<float>& d_gate,
                          float loss_scale = 1) {
    std::vector<float> d_logits(static_cast<size_t>(saved.probs.size()), -7.0f);
    RouteBackward(config, routing, saved, {}, d_gate, loss_scale, {d_logits.data(), saved.probs.rows, saved.probs.cols}, ctx);
    return d_logits;
  }

  RouterConfig config;
  ThreadPool pool;
  Arena arena;
  ExecContext ctx;
};

}  // namespace moe::test
