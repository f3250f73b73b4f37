#include <nlohmann/json.hpp>

#include "moe/base/cpu_info.h"
#include "moe/planner/compare_report.h"

namespace moe {
namespace {

using nlohmann::json;

json JsonOf(const std::vector<double>& values) {
  const Spread spread = SpreadOf(values);
  return {{"mean", spread.count > 0 ? json(spread.mean) : json()}, {"deviation", spread.deviation}, {"values", values}};
}

json JsonOf(const std::optional<double>& value) {
  return value ? json(*value) : json();
}

json JsonOf(const ComparePoint& point, double step_s) {
  json out = {{"step", point.step},
              {"tokens", point.tokens},
              {"seconds", static_cast<double>(point.step) * step_s},
              {"bits_per_byte", point.bits_per_byte},
              {"train_loss", point.train_loss},
              {"max_violation", point.max_violation},
              {"drop_rate", point.drop_rate}};
  if (point.largest_logit) out["largest_logit"] = *point.largest_logit;
  return out;
}

json JsonOf(const CompareResult& run, double step_s) {
  json curve = json::array();
  for (const ComparePoint& point : run.curve) curve.push_back(JsonOf(point, step_s));
  json out = {{"seed", run.seed},
              {"folder", run.folder},
              {"failed", run.failed.empty() ? json() : json(run.failed)},
              {"drop_rate", run.drop_rate},
              {"largest_logit", JsonOf(run.largest_logit)},
              {"spike_steps", run.spikes.steps},
              {"worst_spike", run.spikes.worst},
              {"step_s", run.step_s},
              {"step_ratios", run.step_ratios},
              {"curve", std::move(curve)}};
  if (run.failed.empty()) {
    out["bits_per_byte"] = run.bits_per_byte;
    out["best_bits_per_byte"] = run.best_bits_per_byte;
    out["train_loss"] = run.train_loss;
    out["max_violation"] = run.max_violation;
    out["held_out_drop_rate"] = run.held_out_drop_rate;
    out["dead_experts"] = run.dead_experts;
  }
  return out;
}

}  // namespace

json CompareJson(const CompareReport& report) {
  const ComparePlan& plan = report.plan;
  json variants = json::array();
  int64_t held_out_tokens = 0, held_out_bytes = 0;
  for (size_t i = 0; i < plan.variants.size(); ++i) {
    const CompareVariant& variant = plan.variants[i];
    const double step_s = StepSecondsOf(report, i), ratio = StepRatioOf(report, i);
    json runs = json::array(), out = {{"name", variant.name},
                                      {"axis", variant.axis},
                                      {"set", variant.sets},
                                      {"runs_of", plan.variants[variant.runs_of].name}};
    for (const CompareResult& run : report.runs[i]) {
      runs.push_back(JsonOf(run, step_s));
      out["parameters_total"] = run.parameters_total;
      out["parameters_active"] = run.parameters_active;
      if (run.held_out_tokens > 0) held_out_tokens = run.held_out_tokens, held_out_bytes = run.held_out_bytes;
    }
    out["bits_per_byte"] = JsonOf(ValuesOf(report, i, &CompareResult::bits_per_byte));
    out["best_bits_per_byte"] = JsonOf(ValuesOf(report, i, &CompareResult::best_bits_per_byte));
    out["difference"] = JsonOf(DifferencesOf(report, i));
    out["train_loss"] = JsonOf(ValuesOf(report, i, &CompareResult::train_loss));
    out["max_violation"] = JsonOf(ValuesOf(report, i, &CompareResult::max_violation));
    out["drop_rate"] = JsonOf(ValuesOf(report, i, &CompareResult::drop_rate));
    out["step_s"] = step_s > 0 ? json(step_s) : json();
    out["step_ratio"] = ratio > 0 ? json(ratio) : json();
    out["runs"] = std::move(runs);
    variants.push_back(std::move(out));
  }
  const TrainRecipe& train = plan.base().recipe.train;
  return {{"folder", plan.options.folder},
          {"complete", report.complete()},
          {"steps", report.steps},
          {"tokens", report.steps * train.batch_tokens},
          {"seeds", plan.seeds},
          {"against", plan.variants[plan.against].name},
          {"held_out", {{"tokens", held_out_tokens}, {"bytes", held_out_bytes}}},
          {"spike_margin", kSpikeMargin},
          {"dtype", std::string(Name(train.dtype))},
          {"isa", report.kernels},
          {"threads", report.threads},
          {"cpu", GetCpuInfo().name},
          {"variants", std::move(variants)}};
}

}  // namespace moe
