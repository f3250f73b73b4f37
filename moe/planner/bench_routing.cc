#include "moe/planner/bench_routing.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "moe/base/check.h"
#include "moe/base/rng.h"

namespace moe {
namespace {

template <class T>
void Shuffle(std::vector<T>& list, Rng& rng) {
  for (int64_t i = static_cast<int64_t>(list.size()) - 1; i > 0; --i) {
    std::swap(list[static_cast<size_t>(i)], list[static_cast<size_t>(rng.Below(i + 1))]);
  }
}

}  // namespace

std::string_view Name(BenchLoads loads) {
  return loads == BenchLoads::kBalanced ? "balanced" : "zipf";
}

std::vector<int64_t> ExpertLoads(const MoeShape& s, BenchLoads kind) {
  std::vector<int64_t> loads(static_cast<size_t>(s.E));
  int64_t rows = s.T * s.k;
  double weight_left = 0;
  const auto weight = [&](int64_t rank) { return kind == BenchLoads::kBalanced ? 1.0 : 1.0 / static_cast<double>(rank + 1); };
  for (int64_t e = 0; e < s.E; ++e) weight_left += weight(e);
  for (int64_t e = 0; e < s.E; ++e) {  // what the cap T cuts off goes to those behind
    const int64_t behind = s.E - 1 - e;
    const auto share = int64_t{std::llround(static_cast<double>(rows) * weight(e) / weight_left)};
    loads[static_cast<size_t>(e)] = std::clamp(share, std::max<int64_t>(0, rows - behind * s.T), std::min(s.T, rows));
    rows -= loads[static_cast<size_t>(e)];
    weight_left -= weight(e);
  }
  MOE_CHECK(rows == 0, "{} rows left", rows);
  Rng rng(7);
  Shuffle(loads, rng);
  return loads;
}

std::shared_ptr<const BenchRouting> MakeBenchRouting(const MoeShape& s, BenchLoads kind, ExecContext& ctx) {
  const auto out = std::make_shared<BenchRouting>();
  const auto T = static_cast<size_t>(s.T), k = static_cast<size_t>(s.k);
  std::vector<int32_t> tokens(T);
  std::iota(tokens.begin(), tokens.end(), 0);
  Rng rng(11);
  Shuffle(tokens, rng);
  // Experts take tokens in a circle: at most T at a time, so never one twice, and k rounds in all.
  out->expert.resize(T * k);
  out->gate.assign(T * k, 1.0f / static_cast<float>(s.k));
  std::vector<size_t> slots(T, 0);
  size_t at = 0;
  const std::vector<int64_t> loads = ExpertLoads(s, kind);
  for (size_t e = 0; e < loads.size(); ++e) {
    for (int64_t i = 0; i < loads[e]; ++i, at = (at + 1) % T) {
      const auto t = static_cast<size_t>(tokens[at]);
      out->expert[t * k + slots[t]++] = static_cast<int32_t>(e);
    }
  }
  for (size_t t = 0; t <= T; ++t) out->slot_begin.push_back(static_cast<int32_t>(t * k));
  out->routing = {.slot_begin = out->slot_begin, .expert = out->expert, .gate = out->gate};
  ExecContext own{ctx.pool, out->arena, ctx.kernels};
  out->plan = BuildDispatchPlan(out->routing, s.E, {}, own);
  return out;
}

}  // namespace moe
