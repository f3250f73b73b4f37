#pragma once
// A router alone: logits in, routing and logit gradients out.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/mixture/routing.h"
#include "testing/matchers.h"
#include "testing/random.h"

namespace moe::test {

template <class T>
std::vector<float> Floats(std::span<T> x) {
  return {x.begin(), x.end()};
}

// The experts of each token, best first.
inline std::vector<std::vector<int64_t>> ChoicesOf(std::span<const int32_t> slot_begin, std::span<const int32_t> expert) {
  std::vector<std::vector<int64_t>> out;
  for (size_t t = 0; t + 1 < slot_begin.size(); ++t) {
    out.emplace_back(expert.begin() + slot_begin[t], expert.begin() + slot_begin[t + 1]);
  }
  return out;
}

// chosen: the largest of v, best first but for differences of at most `margin`, none of them twice.
inline void ExpectBestFirst(const std::vector<double>& v, const std::vector<int64_t>& chosen, double margin) {
  std::vector<bool> left(v.size(), true);
  for (const int64_t e : chosen) {
    ASSERT_TRUE(e >= 0 && e < std::ssize(v) && left[static_cast<size_t>(e)]) << "expert " << e;
    left[static_cast<size_t>(e)] = false;
  }
  double rest = -INFINITY;
  for (size_t e = 0; e < v.size(); ++e) rest = left[e] ? std::max(rest, v[e]) : rest;
  for (size_t j = chosen.size(); j-- > 0;) {
    const double own = v[static_cast<size_t>(chosen[j])];
    EXPECT_GE(own, rest - margin) << "choice " << j << ", expert " << chosen[j];
    rest = std::max(rest, own);
  }
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
