#include <fmt/format.h>

#include <algorithm>

#include "moe/base/progress.h"
#include "moe/planner/plan_report.h"
#include "moe/planner/plan_routing.h"

namespace moe {
namespace {

// "3.4 times faster", "about as fast" (within 5 %), "1.3 times slower"; and with what it is compared.
constexpr double kAlike = 1.05;
bool Alike(double ratio) {
  return ratio < kAlike && ratio * kAlike > 1;
}
std::string Pace(double ratio) {
  if (Alike(ratio)) return "about as fast";
  return ratio > 1 ? fmt::format("{:.3g} times faster", ratio) : fmt::format("{:.3g} times slower", 1 / ratio);
}
std::string PaceOver(double ratio, std::string_view other) {
  return fmt::format("{} {} {}", Pace(ratio), Alike(ratio) ? "as" : "than", other);
}

std::string Batch(double batch) {
  return fmt::format("{:.0f}", batch);
}

struct Adviser {
  const Plan& plan;
  std::vector<double> total = plan.SpeedupTotal(), active = plan.SpeedupActive();

  const PlanRow& first() const { return plan.rows.front(); }
  const PlanRow& last() const { return plan.rows.back(); }
  const PlanRow& least() const { return plan.rows[static_cast<size_t>(std::ranges::min_element(total) - total.begin())]; }

  std::string Read(const PlanRow& row) const {
    const double held = static_cast<double>((plan.experts + plan.options.parallel.ranks - 1) / plan.options.parallel.ranks);
    return fmt::format("{:.3g} of {:g} experts of a layer", row.model.time.distinct_experts, held);
  }

  std::string Small() const {
    return fmt::format("At batch {} the MoE reads {}: {}.", first().batch, Read(first()),
                       PaceOver(first().speedup_total(), "the dense model of equal total size"));
  }

  // Where the gain is below kGain: from which batch to which, as far as the plan sees.
  std::string Middle() const {
    const PlanRow& row = least();
    const auto middle = [](const PlanRow& r) { return r.regime == Regime::kMiddle; };
    if (std::ranges::none_of(plan.rows, middle)) {
      return fmt::format("The gain never goes below {} times here: at its least, at batch {}, it is {:.3g} ({}).", kGain,
                         row.batch, row.speedup_total(), Read(row));
    }
    const bool falls = first().regime != Regime::kMiddle, rises = last().regime != Regime::kMiddle;
    const std::string from = falls && !plan.crossover_total.empty() ? "batch " + Batch(plan.crossover_total.front())
                                                                    : fmt::format("batch {}", first().batch);
    const std::string to = rises && !plan.crossover_total.empty() ? Batch(plan.crossover_total.back())
                                                                  : fmt::format("{}, the largest planned for", last().batch);
    const PlanCell& cell = row.model;
    const double lost = cell.time.imbalance_s + cell.time.part_s[static_cast<size_t>(StepPart::kRouter)];
    return fmt::format(
        "From {} to {} little is gained: at batch {} it reads {} and is {}; routing and imbalance take {:.2g} % of its step.",
        from, to, row.batch, Read(row), PaceOver(row.speedup_total(), "that twin"), 100 * lost / cell.time.s);
  }

  std::string PlateauText() const {
    const Boundaries& b = plan.boundaries;
    const std::string theory = fmt::format(
        "95 % of the experts are read from B_sat = {:.3g} on, a dense model is bound by arithmetic from B_d = {:.3g} on",
        b.b_sat, b.b_d);
    if (plan.plateau.exists()) {
      return fmt::format("There is a plateau: from batch {} to {} both are within {:.0f} % of each other ({}).",
                         Batch(plan.plateau.from), Batch(2 * plan.plateau.from), 100 * *plan.plateau.deviation, theory);
    }
    return fmt::format("There is no plateau, no doubling of the batch over which both stay within {:.0f} % of each other ({}).",
                       100 * kPlateau, theory);
  }

  std::string Large() const {
    const double flop = last().dense_total->time.flop / last().model.time.flop;
    if (last().regime != Regime::kCompute) {
      return fmt::format("Arithmetic, of which the MoE does {:.3g} times less, does not decide yet at batch {}.", flop,
                         last().batch);
    }
    size_t i = plan.rows.size() - 1;
    while (i > 0 && plan.rows[i - 1].regime == Regime::kCompute) --i;
    const bool after_middle = i > 0 && plan.rows[i - 1].regime == Regime::kMiddle && !plan.crossover_total.empty();
    const std::string from =
        after_middle ? "batch " + Batch(plan.crossover_total.back()) : fmt::format("batch {}", plan.rows[i].batch);
    return fmt::format(
        "From {} on arithmetic binds the twin, and the MoE does less of it: {} at batch {}, {:.3g} by FLOP alone.", from,
        Pace(last().speedup_total()), last().batch, flop);
  }

  std::string Active() const {
    const auto worst = static_cast<size_t>(std::ranges::min_element(active) - active.begin());
    return fmt::format("Against a dense model of equal active size it is {} at batch {}, and {} at its worst, batch {}.",
                       Pace(active.front()), first().batch, Pace(active[worst]), plan.rows[worst].batch);
  }

  std::string Dense() const {
    std::string text = fmt::format(
        "Take a dense model of the active size where {} of weights fit and {} do not, or where its answers are good enough",
        FormatBytes(plan.active_twin_weights), FormatBytes(plan.memory.weights));
    std::vector<std::string> middle;
    for (const PlanRow& row : plan.rows) {
      if (row.regime == Regime::kMiddle) middle.push_back(std::to_string(row.batch));
    }
    if (middle.empty()) return text + ".";
    return text + fmt::format("; one of the total size at batch {}, where it costs about the same.",
                              middle.size() == 1 ? middle.front() : middle.front() + " to " + middle.back());
  }

  std::string Attention() const {
    const double share = last().model.time.part_s[static_cast<size_t>(StepPart::kAttention)] / last().model.time.s;
    if (share < 0.5) return "";
    return fmt::format("At batch {} attention takes {:.0f} % of the step: there the context decides, not the experts.",
                       last().batch, 100 * share);
  }
};

std::vector<std::string> DenseAdvice(const Plan& plan) {
  const PlanRow &first = plan.rows.front(), &last = plan.rows.back();
  return {
      fmt::format("This model is dense: every step reads all of its weights, and there is no twin to compare it with."),
      fmt::format("Below batch B_d = {:.3g} a larger batch costs little, above it time grows with it: {:.3g} times the tokens "
                  "per second at batch {} as at batch {}, in {:.3g} times the time.",
                  plan.boundaries.b_d, last.model.tokens_per_s / first.model.tokens_per_s, last.batch, first.batch,
                  last.model.time.s / first.model.time.s)};
}

}  // namespace

std::vector<std::string> PlanAdvice(const Plan& plan) {
  if (!plan.moe()) return DenseAdvice(plan);
  const Adviser adviser{plan};
  std::vector<std::string> advice = {adviser.Small()};
  if (plan.rows.size() > 1) {
    advice.insert(advice.end(), {adviser.Middle(), adviser.PlateauText(), adviser.Large()});
  }
  advice.push_back(adviser.Active());
  advice.push_back(adviser.Dense());
  if (std::string attention = adviser.Attention(); !attention.empty()) advice.push_back(std::move(attention));
  if (std::string assumed = AssumedAdvice(plan); !assumed.empty()) advice.push_back(std::move(assumed));
  return advice;
}

}  // namespace moe
