// The page's figures from a plan, or from a sweep and what was predicted for it.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "moe/base/progress.h"
#include "moe/planner/plan_report.h"
#include "moe/planner/plan_routing.h"
#include "moe/planner/report_html.h"
#include "moe/planner/sweep_report.h"
#include "moe/planner/sweep_words.h"

namespace moe {
namespace {

std::string WhatStep(Phase phase, int64_t context) {
  switch (phase) {
    case Phase::kDecode:
      return fmt::format(
          "One decode step: B sequences with {} past positions each, one new token per sequence. Batch is the number of "
          "sequences.",
          context);
    case Phase::kPrefill:
      return fmt::format("One prefill step: B tokens of prompts of at most {} tokens. Batch is the number of tokens.", context);
    case Phase::kTrain:
      return fmt::format(
          "One training step: B tokens in sequences of at most {}, forward, backward, AdamW. Batch is the number of tokens.",
          context);
  }
  return "";
}

std::string SizeOf(const ParameterCount& parameters) {
  return fmt::format("{} parameters, {} active", FormatCount(static_cast<double>(parameters.total)),
                     FormatCount(static_cast<double>(parameters.active)));
}

const MoeConfig* FirstMoe(const ModelConfig& config) {
  for (const LayerSpec& layer : config.layers) {
    if (layer.ffn == FfnKind::kMoe) return &layer.moe;
  }
  return nullptr;
}

std::string ShapeOf(const ModelConfig& config) {
  const MoeConfig* moe = FirstMoe(config);
  const std::string ffn = moe == nullptr ? fmt::format("dense, width {}", config.layers.front().ffn_width)
                                         : fmt::format("{}, top-{}", ExpertsText(*moe), moe->router.top_k);
  return fmt::format("{} {} of width {}, {}", config.layers.size(), config.layers.size() == 1 ? "layer" : "layers",
                     config.hidden, ffn);
}

ReportFigures FiguresOf(const StepTime& time, int64_t batch) {
  ReportFigures out{.s = time.s,
                    .tokens_per_s = static_cast<double>(batch) / time.s,
                    .distinct_experts = time.distinct_experts,
                    .bytes = time.bytes,
                    .flop = time.flop};
  std::ranges::copy(time.part_s, out.part_s.begin());
  out.part_s[kPartWaiting] = time.imbalance_s, out.part_s[kPartSync] = time.sync_s;
  return out;
}

ReportCell CellOf(const PlanCell& cell, int64_t batch) {
  ReportFigures figures = FiguresOf(cell.time, batch);
  figures.tokens_per_s = cell.tokens_per_s, figures.part_s[kPartLink] = cell.all_to_all_s;
  return {.predicted = figures, .measured = {}, .bound = std::string(cell.bound())};
}

// Waits lie in the parts: they are taken out of each by its share.
ReportFigures FiguresOf(const SweepCell& cell, const ModelConfig& config, int64_t batch) {
  ReportFigures out{.s = cell.s_per_step,
                    .tokens_per_s = static_cast<double>(batch) / cell.s_per_step,
                    .distinct_experts = cell.mean_distinct_experts(config),
                    .bytes = cell.cost.bytes,
                    .flop = cell.cost.flop};
  double all = 0;
  for (const double s : cell.part_s) all += s;
  const double working = all > 0 ? std::max(0.0, 1 - cell.wait_s / all) : 1;
  for (size_t p = 0; p < cell.part_s.size(); ++p) out.part_s[p] = cell.part_s[p] * working;
  out.part_s[kPartWaiting] = cell.wait_s;
  return out;
}

constexpr int kShadeOf[] = {0, 8, 2};  // of Regime, in kChartColors

void AddRegimes(const std::vector<double>& speedup, EconomicsReport& report) {
  std::vector<int64_t> batches;
  std::vector<std::string> names;
  for (const ReportRow& row : report.rows) {
    batches.push_back(row.batch), names.push_back(row.regime.empty() ? "not named" : row.regime);
  }
  const auto shade = [](const std::string& name) {
    for (const Regime regime : {Regime::kMemory, Regime::kMiddle, Regime::kCompute}) {
      if (Name(regime) == name) return kShadeOf[static_cast<size_t>(regime)];
    }
    return -1;
  };
  for (const RegimeBand& band : BandsOf(batches, speedup, names)) {
    report.regimes.push_back({band.from, band.to, band.name, shade(band.name)});
  }
}

void AddBoundaries(const Boundaries& b, Phase phase, EconomicsReport& report) {
  if (b.b_sat > 0) report.boundaries.push_back({"B_sat", "(E/k) ln 20: 95 % of the experts are read", b.b_sat});
  if (b.b_d > 0) report.boundaries.push_back({"B_d", std::string(MeaningOfBd(phase)), b.b_d});
  if (b.b_m > 0) report.boundaries.push_back({"B_m", "(E/k) B_d: so is every expert of the MoE", b.b_m});
}

void AddRoofs(const MachineProfile& machine, double gamma, EconomicsReport& report) {
  report.memory_bytes_per_s = machine.memory_bytes_per_s(), report.peak_flop_per_s = gamma;
  for (const CurvePoint& point : machine.weights_bytes_per_s.points) {
    report.cache_bytes_per_s = std::max(report.cache_bytes_per_s, point.y);
  }
}

std::string MachineText(const MachineProfile& m) {
  return fmt::format("{}{}{}{}, weights from memory at {}", m.name, m.cpu.empty() || m.cpu == m.name ? "" : ": " + m.cpu,
                     m.threads > 1 ? fmt::format(", {} threads", m.threads) : "", m.isa.empty() ? "" : ", " + m.isa,
                     FormatRate(m.memory_bytes_per_s(), "B"));
}

std::string SourceText(const MachineProfile& m) {
  return fmt::format("Where the machine's figures come from: {}{}{}.", m.source.empty() ? "unknown" : m.source,
                     m.date.empty() ? "" : "; " + m.date, m.version.empty() ? "" : "; version " + m.version);
}

HtmlTable MemoryTable(const Plan& plan) {
  HtmlTable table{.caption = plan.options.parallel.ranks > 1 ? "Memory of each rank" : "Memory", .head = {""}};
  std::vector<std::string> weights = {"weights"};
  for (const PlanMemory::OfType& type : plan.memory.types) {
    table.head.emplace_back(type.type.name), weights.push_back(FormatBytes(type.weights));
  }
  table.rows.push_back(std::move(weights));
  table.rows.push_back({fmt::format("KV cache of a sequence: {}", FormatBytes(plan.memory.cache_per_sequence))});
  table.rows.push_back({fmt::format("training state: {} (masters, gradients, two moments, packs), without activations",
                                    FormatBytes(plan.memory.training_state))});
  return table;
}

HtmlTable CrossingTable(const Plan& plan) {
  HtmlTable table{.caption = "Where the curves pass their levels, as predicted", .head = {"", "batch"}};
  const auto add = [&](const char* what, const std::vector<double>& batches) {
    for (const double batch : batches) table.rows.push_back({what, fmt::format("{:.3g}", batch)});
  };
  add("speed-up over equal total passes 1.25", plan.crossover_total);
  if (!plan.crossover_active.empty()) add("speed-up over equal active is least", {plan.crossover_active.front()});
  if (plan.crossover_active.size() > 1) add("speed-up over equal active is back at 0.8", {plan.crossover_active[1]});
  return table;
}

}  // namespace

std::optional<size_t> EconomicsReport::Find(SweepRole role) const {
  const auto it = std::ranges::find(models, role, &ReportModel::role);
  return it == models.end() ? std::nullopt : std::optional(static_cast<size_t>(it - models.begin()));
}

std::string_view NameOfReportPart(int part) {
  if (part < kNumStepParts) return Name(static_cast<StepPart>(part));
  constexpr std::string_view kNames[] = {"imbalance, waiting", "begin and end", "exchange"};
  return kNames[static_cast<size_t>(part - kNumStepParts)];
}

EconomicsReport ReportOf(const Plan& plan) {
  EconomicsReport report{.title = fmt::format("{} on {}", plan.name, plan.machine.name), .advice = PlanAdvice(plan)};
  report.lead = {WhatStep(plan.options.phase, plan.options.context) + " Predicted from the shape; nothing was run."};
  report.experts = plan.experts;
  report.models = {{SweepRole::kModel, plan.moe() ? "MoE" : "dense",
                    fmt::format("{}: {}; {}; {} weights, {}", plan.name, SizeOf(plan.parameters), ShapeOf(plan.config),
                                plan.options.dtype.name, FormatBytes(plan.memory.weights))}};
  if (plan.moe()) {
    report.models.push_back({SweepRole::kDenseTotal, "equal total", "a dense model of as many parameters"});
    report.models.push_back({SweepRole::kDenseActive, "equal active", "a dense model of as many parameters as a token uses"});
  }
  for (const PlanRow& row : plan.rows) {
    ReportRow out{.batch = row.batch, .cells = {CellOf(row.model, row.batch)}};
    if (plan.moe()) {
      out.cells.push_back(CellOf(*row.dense_total, row.batch)), out.cells.push_back(CellOf(*row.dense_active, row.batch));
      out.regime = Name(row.regime);
    }
    report.rows.push_back(std::move(out));
  }
  if (plan.moe()) AddRegimes(plan.SpeedupTotal(), report);
  AddBoundaries(plan.boundaries, plan.options.phase, report);
  AddRoofs(plan.machine, plan.boundaries.gamma, report);
  if (plan.moe() && !plan.crossover_total.empty()) report.tables.push_back(CrossingTable(plan));
  report.tables.push_back(MemoryTable(plan));
  report.how = {"Machine: " + MachineText(plan.machine) +
                    fmt::format(", {} {}.", Name(plan.options.dtype.format), FormatRate(plan.boundaries.gamma, "FLOP")),
                SourceText(plan.machine)};
  if (plan.moe()) {
    report.how.push_back(plan.options.measured != nullptr
                             ? "Experts are chosen as the model chose: " + RoutingOf(plan.options) + "."
                         : plan.options.routing.kind == SweepRouting::kZipf
                             ? fmt::format("Experts are chosen with chances that fall as rank^-{:g}.", plan.options.routing.s)
                             : "Experts are chosen with equal chances.");
  }
  if (plan.options.parallel.ranks > 1) {
    report.how.push_back(fmt::format("Experts are spread over {} ranks, each with a batch of its own; link {}, {}.",
                                     plan.options.parallel.ranks, FormatRate(plan.options.parallel.bytes_per_s, "B"),
                                     FormatSeconds(plan.options.parallel.latency_s)));
  }
  if (!plan.options.dtype.ours) {
    report.how.push_back(fmt::format("{} is planned for as {:.3g} bytes per weight, multiplied at the rate of bf16.",
                                     plan.options.dtype.name, plan.options.dtype.bytes));
  }
  return report;
}

namespace {

std::string Percent(double share) {
  return std::isnan(share) ? "–" : fmt::format("{:.1f} %", 100 * share);
}

HtmlTable ErrorTable(const Verification& v) {
  HtmlTable table{.caption = "Mean error of predicted step times", .head = {"", "all", "memory", "middle", "compute"}};
  const auto add = [&](const char* name, const PredictionError& error) {
    table.rows.push_back(
        {name, Percent(error.all), Percent(error.by_regime[0]), Percent(error.by_regime[1]), Percent(error.by_regime[2])});
  };
  add("with the probe beside each measurement", v.adjacent), add("with the profile's own probe", v.cached);
  return table;
}

HtmlTable CheckTable(const Verification& v) {
  HtmlTable table{.caption = "Boundaries of the curves, as batches",
                  .head = {"", "predicted", "measured", "within its own error", "factor"}};
  const auto side = [](const std::optional<double>& batch) { return batch ? fmt::format("{:.1f}", *batch) : "–"; };
  for (const BoundaryCheck& b : v.boundaries) {
    table.rows.push_back({b.name, side(b.predicted), side(b.measured), fmt::format("{:.1f} to {:.1f}", b.from, b.to),
                          fmt::format("{}{:.2f}", b.exact() ? "" : "at least ", b.factor())});
  }
  return table;
}

std::string Times(double ratio) {
  if (ratio > 0.95 && ratio < 1.05) return "about as fast";
  return ratio > 1 ? fmt::format("{:.2f} times as fast", ratio) : fmt::format("{:.2f} times slower", 1 / ratio);
}

// What the measured curve says.
std::vector<std::string> SweepAdvice(const SweepReport& sweep, const std::vector<double>& total,
                                     const std::vector<double>& active) {
  const std::vector<SweepRow>& rows = sweep.rows;
  std::vector<std::string> out;
  const auto batch = [&](size_t i) { return rows[i].batch; };
  const auto least = [](const std::vector<double>& curve) {
    return static_cast<size_t>(std::ranges::min_element(curve) - curve.begin());
  };
  if (!total.empty()) {
    const size_t low = least(total);
    std::string text = fmt::format("{} the MoE is {} at batch {}", AgainstTwin("total size"), Times(total.front()), batch(0));
    if (low > 0) text += fmt::format(", {} at its least, batch {}", Times(total[low]), batch(low));
    if (low + 1 < rows.size()) {
      const size_t twin = static_cast<size_t>(sweep.Find(SweepRole::kDenseTotal) - sweep.subjects.data());
      text += fmt::format(", {} at batch {} where it has {:.3g} times less arithmetic", Times(total.back()), rows.back().batch,
                          rows.back().cells[twin].cost.flop / rows.back().cells.front().cost.flop);
    }
    out.push_back(text + ".");
    std::vector<int64_t> batches;
    for (const SweepRow& row : rows) batches.push_back(row.batch);
    const Plateau plateau = PlateauOf(batches, total);
    if (plateau.deviation) {
      out.push_back(
          plateau.exists()
              ? fmt::format("There is a plateau: from batch {:.0f} to {:.0f} both are within {:.0f} % of each other.",
                            plateau.from, 2 * plateau.from, 100 * *plateau.deviation)
              : fmt::format("There is no plateau: over no doubling of the batch both stay within {:.0f} %.", 100 * kPlateau));
    }
  }
  if (!active.empty()) {
    const size_t low = least(active);
    out.push_back(fmt::format("{} it is {} at batch {}, and {} at its worst, batch {}.", AgainstTwin("active size"),
                              Times(active.front()), batch(0), Times(active[low]), batch(low)));
  }
  if (!sweep.subjects.front().config.has_experts()) out.emplace_back("This model has no experts: it was measured alone.");
  return out;
}

std::vector<std::string> HowMeasured(const SweepReport& sweep, const Verification* v, const MachineProfile* machine) {
  double repeats = 0, cells = 0;
  for (const SweepRow& row : sweep.rows) {
    for (const SweepCell& cell : row.cells) repeats += cell.repeat_error, ++cells;
  }
  const ReadRange reads = ReadsOf(sweep);
  const std::string forced = ForcedText(sweep.routing);
  std::vector<std::string> out = {
      fmt::format("Measured on {}; read probe {} to {}.", MeasuredOn(sweep), FormatRate(reads.min, "B"),
                  FormatRate(reads.max, "B")),
      fmt::format("Models took turns: medians {}; the sweep repeats itself within {}.", RoundsText(sweep),
                  Percent(cells > 0 ? repeats / cells : 0)),
  };
  if (sweep.subjects.front().config.has_experts()) {
    out.push_back(forced.empty() ? "The model's own routers chose the experts." : "Tokens were " + forced + ".");
  }
  if (sweep.core_wait > kQuietCores) {
    out.push_back(
        fmt::format("Other programs took {:.0f} % of the cores' time: all figures are too slow.", 100 * sweep.core_wait));
  }
  if (sweep.interrupted) out.emplace_back(kStoppedEarly);
  if (v == nullptr) return out;
  out.push_back("Predicted with the profile of " + MachineText(*machine) + ". " + SourceText(*machine));
  out.push_back(
      fmt::format("Curves are predicted at the bandwidth and pace measured beside each batch. A regime is named where the "
                  "prediction is within "
                  "{}: 10 %, or twice the sweep's own repeat error.",
                  Percent(v->stated_error)));
  return out;
}

}  // namespace

EconomicsReport ReportOf(const SweepReport& sweep, const std::string& name, const Verification* v,
                         const MachineProfile* machine) {
  const SweepSubject& model = sweep.subjects.front();
  EconomicsReport report{.title = fmt::format("{} on {}", name, sweep.cpu)};
  report.lead = {WhatStep(sweep.phase, sweep.context)};
  const MoeConfig* moe = FirstMoe(model.config);
  report.experts = moe == nullptr ? 0 : moe->router.num_experts;
  for (const SweepSubject& s : sweep.subjects) {
    report.models.push_back(
        {s.role, SweepLabel(s),
         fmt::format("{}{}; {}; {} of {} weights{}", s.role == SweepRole::kModel ? name + ": " : "", SizeOf(s.parameters),
                     ShapeOf(s.config), FormatBytes(static_cast<double>(s.weight_bytes)), Name(sweep.format),
                     s.random_weights ? ", random" : "")});
  }
  std::vector<double> total, active;  // measured
  for (const SweepRow& row : sweep.rows) {
    if (const auto s = sweep.Speedup(row, SweepRole::kDenseTotal)) total.push_back(*s);
    if (const auto s = sweep.Speedup(row, SweepRole::kDenseActive)) active.push_back(*s);
  }
  const std::vector<Regime> regimes = v != nullptr ? v->regimes : total.empty() ? std::vector<Regime>{} : RegimesOf(total);
  std::vector<double> of_regimes = total;
  const auto twin = report.Find(SweepRole::kDenseTotal);
  for (size_t r = 0; r < sweep.rows.size(); ++r) {
    const SweepRow& row = sweep.rows[r];
    ReportRow out{.batch = row.batch};
    for (size_t i = 0; i < row.cells.size(); ++i) {
      ReportCell cell{.measured = FiguresOf(row.cells[i], sweep.subjects[i].config, row.batch)};
      if (v != nullptr) {
        cell.predicted = FiguresOf(v->cells[r][i].adjacent, row.batch);
        cell.bound = v->cells[r][i].adjacent.memory_bound() ? "memory" : "compute";
      }
      out.cells.push_back(std::move(cell));
    }
    if (v != nullptr && twin) of_regimes[r] = v->cells[r][*twin].adjacent.s / v->cells[r][0].adjacent.s;
    if (!regimes.empty() && (v == nullptr || v->named[r])) out.regime = Name(regimes[r]);
    report.rows.push_back(std::move(out));
  }
  if (!regimes.empty()) AddRegimes(of_regimes, report);
  report.how = HowMeasured(sweep, v, machine);
  if (!sweep.rows.empty()) {
    report.advice = SweepAdvice(sweep, total, active);
    report.memory_bytes_per_s = sweep.rows[sweep.rows.size() / 2].read_bytes_per_s;
  }
  if (v == nullptr) {
    AddBoundaries({.b_sat = SaturationBatch(model.config)}, sweep.phase, report);
    return report;
  }
  const Boundaries boundaries =
      BoundariesOf(model.config, *machine, sweep.format, sweep.format == DType::kF32 ? 4 : 2, sweep.phase);
  AddBoundaries(boundaries, sweep.phase, report), AddRoofs(*machine, boundaries.gamma, report);
  report.advice.push_back(fmt::format("The prediction of a step is off by {} on average.", Percent(v->adjacent.all)));
  for (std::string& finding : Findings(sweep, *v)) report.advice.push_back(std::move(finding));
  report.tables = {ErrorTable(*v)};
  if (!v->boundaries.empty()) report.tables.push_back(CheckTable(*v));
  return report;
}

}  // namespace moe
