#include "moe/planner/bench_subjects.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "moe/planner/bench_attention.h"
#include "moe/planner/bench_grouped.h"
#include "moe/planner/bench_moe.h"
#include "moe/planner/bench_optimizer.h"
#include "moe/planner/bench_sparse.h"

namespace moe {
namespace {

std::vector<BenchCase> Join(std::vector<std::vector<BenchCase>> lists) {
  std::vector<BenchCase> out;
  for (auto& list : lists) std::move(list.begin(), list.end(), std::back_inserter(out));
  // Lines of a group together, groups in the order of their first line.
  std::vector<std::string> order;
  for (const BenchCase& c : out) {
    if (std::ranges::find(order, c.group) == order.end()) order.push_back(c.group);
  }
  std::ranges::stable_sort(out, {}, [&](const BenchCase& c) { return std::ranges::find(order, c.group) - order.begin(); });
  return out;
}

constexpr BenchSubject kSubjects[] = {
    {"gemm", "matrix products: dense, decode, of experts, block-sparse, backward", "gemm, moe or sparse",
     [](const BenchShapes& s, DType format, const GemmPeers& peers) {
       return Join(
           {DenseCases(s, format, peers), GroupedCases(s, format), BlockSparseCases(s, format), CheckerboardCases(s, format)});
     }},
    {"moe", "an MoE layer: its executors forward and backward, decode, router, prompts, training steps", "moe",
     [](const BenchShapes& s, DType format, const GemmPeers&) {
       return Join({MoeLayerCases(s, format), MoeDecodeCases(s, format), MoeStepCases(s, format), MoePromptCases(s, format)});
     }},
    {"router", "routing policies, as shares of an MoE layer's forward pass in training", "moe",
     [](const BenchShapes& s, DType format, const GemmPeers&) { return MoePolicyCases(s, format); }},
    {"attention", "attention: prefill, backward, decode", "attention",
     [](const BenchShapes& s, DType format, const GemmPeers&) { return AttentionCases(s, format); }},
    {"optimizer", "a step of AdamW", "adamw or moe",
     [](const BenchShapes& s, DType format, const GemmPeers&) { return OptimizerCases(s, format); }},
};

}  // namespace

std::span<const BenchSubject> BenchSubjects() {
  return kSubjects;
}

}  // namespace moe
