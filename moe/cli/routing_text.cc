#include "moe/cli/routing_text.h"

#include <nlohmann/json.hpp>

#include "moe/model/hf_router.h"

namespace moe {

std::string RoutingText(const RouterConfig& router) {
  const std::string_view score = NameIn(kRouterScores, router.score);
  std::string text = fmt::format("{} of {} logits, ", score, router.num_experts);
  text += router.score == RouterScore::kRelu ? "all above 0" : fmt::format("the {} largest", router.top_k);
  if (router.score == RouterScore::kSoftmax) {
    text = fmt::format("softmax over {} experts, the {} largest", router.num_experts, router.top_k);
  } else if (router.score == RouterScore::kTopKSoftmax) {
    text = fmt::format("the {} largest of {} logits, softmax over those", router.top_k, router.num_experts);
  }
  if (router.score != RouterScore::kTopKSoftmax && router.score != RouterScore::kSparsemixer) {
    text += router.normalize ? ", renormalised" : ", not renormalised";
  }
  const CapacityConfig& c = router.capacity;
  if (c.factor > 0) text += fmt::format("; capacity factor {} in training", c.factor);
  if (c.eval_factor > 0) text += fmt::format("; capacity factor {} in evaluation and generation", c.eval_factor);
  if (c.factor == 0 && c.eval_factor == 0) text += "; dropless";
  // Whatever else the policy says, by the names of recipes.
  RouterConfig said = PlainRouter(router.num_experts, router.top_k, router.normalize);
  said.score = router.score;
  said.capacity.factor = router.capacity.factor, said.capacity.eval_factor = router.capacity.eval_factor;
  said.balance_loss = router.balance_loss, said.z_loss = router.z_loss;
  const nlohmann::ordered_json rest = RouterJson(router, said);
  for (const auto& [key, value] : rest.items()) {
    text += fmt::format("; {} {}", key, value.is_string() ? value.get<std::string>() : value.dump());
  }
  return text;
}

}  // namespace moe
