#include <nlohmann/json.hpp>

#include "moe/mixture/moe_metrics.h"
#include "moe/planner/route_report.h"

namespace moe {
namespace {

nlohmann::json LayerJson(const LayerRoutes& layer, const Tokenizer& tokenizer) {
  nlohmann::json out = ToJson(layer.load);
  out["layer"] = layer.layer;
  out["experts"] = layer.router.num_experts;
  out["top_k"] = layer.router.top_k;
  out["mutual_information"] = {{"bits", layer.information.bits},
                               {"shuffled_bits", layer.information.shuffled_bits},
                               {"excess_bits", layer.information.excess_bits()},
                               {"expert_bits", layer.information.expert_bits}};
  nlohmann::json likes = nlohmann::json::array();
  for (const auto& of_expert : layer.likes) {
    nlohmann::json tokens = nlohmann::json::array();
    for (const LikedToken& liked : of_expert) {
      tokens.push_back(
          {{"id", liked.id}, {"token", tokenizer.TokenName(liked.id)}, {"count", liked.count}, {"lift", liked.lift}});
    }
    likes.push_back(std::move(tokens));
  }
  out["likes"] = std::move(likes);
  for (const ExpertGroup& group : layer.groups) out["expert_groups"].push_back(ToText(group));
  return out;
}

nlohmann::json PolicyJson(const PolicyRoutes& policy, int64_t num_tokens) {
  nlohmann::json out = {{"policy", policy.policy}};
  if (!policy.why.empty()) {
    out["why_not"] = policy.why;
    return out;
  }
  out["experts_per_token"] = policy.slots_per_token(num_tokens);
  out["drop_rate"] = policy.drop_rate();
  out["padded_share"] = policy.padded_share();
  out["mean_max_violation"] = policy.mean_violation();
  out["max_violation"] = policy.largest_violation();
  nlohmann::json layers = nlohmann::json::array(), times = nlohmann::json::object();
  for (const PolicyLayer& layer : policy.layers) {
    layers.push_back({{"layer", layer.layer},
                      {"slots", layer.slots},
                      {"dropped", layer.dropped},
                      {"bucket_rows", layer.bucket_rows},
                      {"padded_rows", layer.padded_rows},
                      {"max_violation", MaxViolation(layer.tokens_per_expert)},
                      {"tokens_per_expert", layer.tokens_per_expert}});
  }
  out["layers"] = std::move(layers);
  for (size_t i = 0; i < policy.times.size(); ++i) {
    const ExecutorTime& time = policy.times[i];
    times[kExecutors[i].name] = time.why.empty()
                                    ? nlohmann::json{{"s", time.s.median}, {"s_min", time.s.min}, {"s_max", time.s.max}}
                                    : nlohmann::json{{"why_not", time.why}};
  }
  if (!policy.times.empty()) out["times"] = std::move(times);
  return out;
}

}  // namespace

nlohmann::json RouteJson(const RouteReport& report, const Tokenizer& tokenizer) {
  nlohmann::json layers = nlohmann::json::array(), policies = nlohmann::json::array();
  for (const LayerRoutes& layer : report.layers) layers.push_back(LayerJson(layer, tokenizer));
  for (const PolicyRoutes& policy : report.policies) policies.push_back(PolicyJson(policy, report.evaluation.num_tokens));
  nlohmann::json out = {{"model", report.model},
                        {"files", report.files},
                        {"tokens", report.evaluation.num_tokens},
                        {"bytes", report.evaluation.num_bytes},
                        {"loss", report.evaluation.loss()},
                        {"bits_per_byte", report.evaluation.bits_per_byte()},
                        {"context", report.context},
                        {"batch_tokens", report.step_rows},
                        {"least_count", report.least_count},
                        {"layers", layers},
                        {"as", report.training ? "training" : "evaluation"},
                        {"policies", policies},
                        {"cpu", report.cpu},
                        {"isa", report.isa},
                        {"threads", report.threads},
                        {"dtype", std::string(Name(report.format))},
                        {"seconds", report.seconds}};
  if (report.timed_layer >= 0) {
    out["timed"] = {{"layer", report.timed_layer}, {"tokens", report.timed_rows}, {"repetitions", report.repetitions}};
  }
  return out;
}

}  // namespace moe
