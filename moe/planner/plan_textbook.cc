#include "moe/planner/plan_textbook.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "moe/base/progress.h"
#include "moe/planner/plan_routing.h"
#include "moe/planner/wrapped.h"

namespace moe {
namespace {

double BytesAt(const ToyPlan& plan, double batch, double weight_bytes) {
  const ToyModel& m = plan.model;
  return weight_bytes * m.parameters * (1 - std::pow(1 - m.active / m.parameters, batch));
}

double StepAt(const ToyPlan& plan, double batch, const TextbookOptions& options) {
  const double compute_s = batch * plan.model.flop_per_token / options.machine.flop_per_s;
  if (options.machine.bytes_per_s <= 0) return compute_s;
  return std::max(compute_s, BytesAt(plan, batch, options.weight_bytes) / options.machine.bytes_per_s);
}

ToyPlan PlanOf(const ToyModel& model, const TextbookOptions& options) {
  const ToyMachine& machine = options.machine;
  ToyPlan plan{.model = model, .compute_tokens_per_s = machine.flop_per_s / model.flop_per_token};
  if (machine.bytes_per_s > 0) {
    plan.batch_1_s = options.weight_bytes * model.active / machine.bytes_per_s;
    plan.read_all_s = options.weight_bytes * model.parameters / machine.bytes_per_s;
    if (model.active < model.parameters) plan.b_sat = model.parameters / model.active * std::log(20.0);
    plan.b_d = machine.flop_per_s * options.weight_bytes / (2 * machine.bytes_per_s);
    plan.b_m = plan.read_all_s * plan.compute_tokens_per_s;
  }
  for (const int64_t batch : options.batches) plan.s_per_step.push_back(StepAt(plan, static_cast<double>(batch), options));
  return plan;
}

Status CheckLengths(const TextbookOptions& o) {
  if (o.flop_per_token.empty() && o.parameters.empty()) {
    return UsageErr("--flops-per-token", "got neither this nor --parameters, expected one of the two");
  }
  if (!o.flop_per_token.empty() && !o.parameters.empty() && o.flop_per_token.size() != o.parameters.size()) {
    return UsageErr("--parameters", "got {} models, expected {} as --flops-per-token has", o.parameters.size(),
                    o.flop_per_token.size());
  }
  if (!o.active.empty() && o.active.size() != o.parameters.size()) {
    return UsageErr("--active", "got {} models, expected {} as --parameters has", o.active.size(), o.parameters.size());
  }
  if (o.machine.bytes_per_s > 0 && o.parameters.empty()) {
    return UsageErr("--bandwidth", "got no --parameters, expected how many there are to read");
  }
  for (size_t i = 0; i < o.active.size(); ++i) {
    if (o.active[i] > o.parameters[i]) {
      return UsageErr("--active", "got {:g}, expected at most the {:g} parameters of its model", o.active[i], o.parameters[i]);
    }
  }
  return {};
}

std::string NameOf(const ToyPlan& plan) {
  const ToyModel& m = plan.model;
  if (m.parameters <= 0) return FormatCount(m.flop_per_token) + " FLOP per token";
  if (m.active >= m.parameters) return FormatCount(m.parameters) + " dense";
  return fmt::format("{}, {} active", FormatCount(m.parameters), FormatCount(m.active));
}

// "2.5 times"; of less than 1 with three digits.
std::string Times(double ratio) {
  return fmt::format("{:.3g} times", ratio);
}

// ", it reads that much less"; how much more where `other` takes more than `one`, nothing where they are alike.
std::string Because(std::string_view verb, double one, double other) {
  if (other == one) return "";
  if (other < one) return fmt::format(", it {} that much less", verb);
  return fmt::format(", it {} {} as much", verb, Times(other / one));
}

std::string ReadingText(const Textbook& t) {
  std::string text = fmt::format("\n{:<28} {:>12} {:>12} {:>8} {:>8} {:>8}\n", "bound by memory", "batch 1", "all read",
                                 "B_sat", "B_d", "B_m");
  for (const ToyPlan& plan : t.models) {
    text += fmt::format("{:<28} {:>12} {:>12} {:>8} {:>8.3g} {:>8.3g}\n", NameOf(plan), FormatSeconds(plan.batch_1_s),
                        FormatSeconds(plan.read_all_s), plan.b_sat > 0 ? fmt::format("{:.3g}", plan.b_sat) : "-", plan.b_d,
                        plan.b_m);
  }
  text +=
      "\nbatch 1: active weights / bandwidth; all read: all weights / bandwidth, from about B_sat = (total/active) ln 20 on\n"
      "B_d: FLOP/s * bytes per weight / (2 bandwidth); B_m: where computing takes longer than reading all weights\n";
  return text;
}

std::string RegimesText(const Textbook& t, size_t i) {
  const ToyPlan &one = t.models.front(), &other = t.models[i];
  const double sat = std::max(one.b_sat, other.b_sat), compute = std::min(one.b_m, other.b_m),
               all = std::max(one.b_m, other.b_m);
  std::string text = fmt::format("\n{} against {}:\n", NameOf(other), NameOf(one));
  text += fmt::format("- small batch, memory: {} as fast at batch 1{}.\n", Times(one.batch_1_s / other.batch_1_s),
                      Because("reads", one.batch_1_s, other.batch_1_s));
  if (sat < compute) {
    text += fmt::format("- middle, batch {:.3g} to {:.3g}: both read all their weights: {} as fast.\n", sat, compute,
                        Times(one.read_all_s / other.read_all_s));
  } else {
    text += fmt::format("- no plateau in the middle: arithmetic binds from batch {:.3g} on, all is read from {:.3g} on.\n",
                        compute, sat);
  }
  return text + fmt::format("- large batch, arithmetic, from {:.3g} on: {} as fast{}.\n", all,
                            Times(one.model.flop_per_token / other.model.flop_per_token),
                            Because("computes", one.model.flop_per_token, other.model.flop_per_token));
}

std::string ValleyText(const Textbook& t, const TextStyle& style) {
  TerminalPlot plot{.title = "speed-up over " + NameOf(t.models.front()), .x_name = "batch"};
  for (const int64_t batch : t.options.batches) plot.x.push_back(static_cast<double>(batch));
  constexpr size_t kCurves = 3;
  for (size_t i = 1; i < std::min(t.models.size(), kCurves + 1); ++i) {
    PlotSeries series{.name = NameOf(t.models[i])};
    for (size_t b = 0; b < plot.x.size(); ++b) series.y.push_back(t.Speedup(i, b));
    plot.series.push_back(std::move(series));
  }
  const std::string drawn = Draw(plot, style.width, style.unicode);
  return drawn.empty() ? "" : "\n" + drawn;
}

}  // namespace

Result<Textbook> MakeTextbook(const TextbookOptions& options) {
  MOE_TRY(CheckLengths(options));
  Textbook out{.options = options};
  for (size_t i = 0; i < std::max(options.flop_per_token.size(), options.parameters.size()); ++i) {
    ToyModel model;
    if (!options.parameters.empty()) {
      model.parameters = options.parameters[i];
      model.active = options.active.empty() ? model.parameters : options.active[i];
    }
    constexpr double kFlopPerParameter = 2;
    model.flop_per_token = options.flop_per_token.empty() ? kFlopPerParameter * model.active : options.flop_per_token[i];
    out.models.push_back(PlanOf(model, options));
  }
  return out;
}

nlohmann::json TextbookJson(const Textbook& t) {
  nlohmann::json models = nlohmann::json::array(), rows = nlohmann::json::array();
  for (size_t i = 0; i < t.models.size(); ++i) {
    const ToyPlan& plan = t.models[i];
    nlohmann::json model = {{"flop_per_token", plan.model.flop_per_token},
                            {"tokens_per_s", plan.compute_tokens_per_s},
                            {"speedup", t.models.front().model.flop_per_token / plan.model.flop_per_token}};
    if (plan.model.parameters > 0) {
      model["parameters_total"] = plan.model.parameters, model["parameters_active"] = plan.model.active;
    }
    if (t.reads()) {
      model["batch_1_s"] = plan.batch_1_s, model["read_all_s"] = plan.read_all_s;
      model["b_sat"] = plan.b_sat, model["b_d"] = plan.b_d, model["b_m"] = plan.b_m;
    }
    models.push_back(std::move(model));
  }
  for (size_t b = 0; t.reads() && b < t.options.batches.size(); ++b) {
    nlohmann::json s_per_step = nlohmann::json::array(), speedup = nlohmann::json::array();
    for (size_t i = 0; i < t.models.size(); ++i) {
      s_per_step.push_back(t.models[i].s_per_step[b]), speedup.push_back(t.Speedup(i, b));
    }
    rows.push_back({{"batch", t.options.batches[b]}, {"s_per_step", s_per_step}, {"speedup", speedup}});
  }
  nlohmann::json out = {{"textbook", true}, {"flop_per_s", t.options.machine.flop_per_s}, {"models", models}};
  if (t.reads()) {
    out["bytes_per_s"] = t.options.machine.bytes_per_s, out["dtype"] = t.options.dtype, out["rows"] = rows;
  }
  return out;
}

std::string TextbookText(const Textbook& t, const TextStyle& style) {
  const ToyMachine& machine = t.options.machine;
  std::string text = fmt::format("{} and nothing else to wait for:\n\n", FormatRate(machine.flop_per_s, "FLOP"));
  for (const ToyPlan& plan : t.models) {
    text += fmt::format("{:<28} {} FLOP per token: {:>10} tokens/s", NameOf(plan), FormatCount(plan.model.flop_per_token),
                        Thousands(plan.compute_tokens_per_s));
    if (&plan != &t.models.front()) {
      text += fmt::format(", {} as many", Times(plan.compute_tokens_per_s / t.models.front().compute_tokens_per_s));
    }
    text += "\n";
  }
  if (!t.reads()) return text;
  text += fmt::format("\nWith {} weights from memory at {}, a step takes the longer of reading and computing:\n",
                      t.options.dtype, FormatRate(machine.bytes_per_s, "B"));
  text += ReadingText(t);
  for (size_t i = 1; i < t.models.size(); ++i) text += RegimesText(t, i);
  return text + (t.models.size() > 1 ? ValleyText(t, style) : "");
}

}  // namespace moe
