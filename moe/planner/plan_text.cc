#include <fmt/format.h>

#include <algorithm>

#include "moe/base/progress.h"
#include "moe/planner/plan_report.h"
#include "moe/planner/plan_routing.h"
#include "moe/planner/wrapped.h"

namespace moe {
namespace {

std::string What(const Plan& plan) {
  const int64_t context = plan.options.context;
  switch (plan.options.phase) {
    case Phase::kDecode:
      return fmt::format("Plan of one decode step: B sequences, {} past positions each, one new token per sequence", context);
    case Phase::kPrefill:
      return fmt::format("Plan of one prefill step: B tokens of prompts of {} tokens enter an empty cache", context);
    case Phase::kTrain:
      return fmt::format("Plan of one training step: B tokens in sequences of {}, forward, backward, AdamW", context);
  }
  return "";
}

std::string Shape(const ModelConfig& config) {
  for (const LayerSpec& layer : config.layers) {
    if (layer.ffn == FfnKind::kMoe) return fmt::format("{}, top-{}", ExpertsText(layer.moe), layer.moe.router.top_k);
  }
  return fmt::format("dense, width {}", config.layers.front().ffn_width);
}

std::string KvText(const Plan& plan) {
  if (plan.options.phase == Phase::kTrain) return "";
  const auto names = MachineNames();
  const bool built_in = std::ranges::find(names, plan.machine.name) != names.end();
  const bool wide = plan.options.kv_value_bytes > 2;
  return fmt::format("KV cache  {}{}\n", plan.options.kv_type,
                     built_in && wide ? ", as our engine keeps it; those of GPUs keep 16 bits: --kv-dtype f16" : "");
}

std::string Header(const Plan& plan) {
  const PlanOptions& options = plan.options;
  const MachineProfile& m = plan.machine;
  std::string text = What(plan) + "\n\n";
  text += fmt::format("model     {}: {} parameters, {} active; {} layers, {}; {} weights", plan.name,
                      FormatCount(static_cast<double>(plan.parameters.total)),
                      FormatCount(static_cast<double>(plan.parameters.active)), plan.config.layers.size(), Shape(plan.config),
                      options.dtype.name);
  if (plan.moe()) text += ", " + RoutingOf(options);
  text += fmt::format("\nmachine   {}{}{}, weights from memory at {}, {} {}\n", m.name,
                      m.cpu.empty() || m.cpu == m.name ? "" : ": " + m.cpu,
                      m.threads > 1 ? fmt::format(", {} threads", m.threads) : "", FormatRate(m.memory_bytes_per_s(), "B"),
                      Name(options.dtype.format), FormatRate(plan.boundaries.gamma, "FLOP"));
  text += fmt::format("figures   {}{}\n", m.source.empty() ? "unknown" : m.source, m.date.empty() ? "" : ", " + m.date);
  if (options.parallel.ranks > 1) {
    text += fmt::format(
        "ranks     {}, {} experts of a layer on each, link {} and {}; B is the batch of each rank, tokens/s are of all\n",
        options.parallel.ranks, (plan.experts + options.parallel.ranks - 1) / options.parallel.ranks,
        FormatRate(options.parallel.bytes_per_s, "B"), FormatSeconds(options.parallel.latency_s));
  }
  if (!options.dtype.ours) {
    text += fmt::format(
        "note      our kernels have f32 and bf16: {} is planned for as {:.3g} bytes per weight at the rate of bf16\n",
        options.dtype.name, options.dtype.bytes);
  }
  return Wrapped(text + KvText(plan), 10);
}

std::string MemoryTable(const Plan& plan) {
  const PlanMemory& memory = plan.memory;
  std::string text = fmt::format("\n{:<24}", plan.options.parallel.ranks > 1 ? "memory of each rank" : "memory");
  for (const PlanMemory::OfType& type : memory.types) text += fmt::format(" {:>9}", type.type.name);
  text += fmt::format("\n  {:<22}", "weights");
  for (const PlanMemory::OfType& type : memory.types) text += fmt::format(" {:>9}", FormatBytes(type.weights));
  text += fmt::format("\n  {:<22} {:>9}   {}, {} positions", "KV cache of a sequence", FormatBytes(memory.cache_per_sequence),
                      plan.options.kv_type, plan.options.context + (plan.options.phase == Phase::kDecode ? 1 : 0));
  text += fmt::format("\n  {:<22} {:>9}   masters, gradients, two moments, {} packs; activations come on top\n",
                      "training state", FormatBytes(memory.training_state), Name(plan.options.dtype.format));
  if (plan.machine.memory_bytes > 0) {
    const double held = static_cast<double>(plan.machine.memory_bytes);
    const auto first = std::ranges::find_if(plan.rows, [&](const PlanRow& row) { return row.memory_bytes > held; });
    text += fmt::format("  {:<22} {:>9}", "of the machine", FormatBytes(held));
    if (first != plan.rows.end()) text += fmt::format("   too little from batch {} on", first->batch);
    text += "\n";
  }
  return text;
}

std::string Share(double part, double whole) {
  const double percent = 100 * part / whole;
  return percent < 0.5 ? "." : fmt::format("{:.0f}", percent);
}

std::string Line(const Plan& plan, const PlanRow& row) {
  const StepTime& time = row.model.time;
  std::string line = fmt::format("{:>5}", row.batch);
  if (plan.moe()) line += fmt::format("  {:>7.1f}", time.distinct_experts);
  line += fmt::format("  {:>8} {:>8}  {:>8}  {:<8}", FormatSeconds(time.s), FormatCount(row.model.tokens_per_s),
                      FormatBytes(row.memory_bytes), row.model.bound());
  if (plan.moe()) {
    line += fmt::format(" {:<7} {:>5.2f}x {:>5.2f}x ", Name(row.regime), row.speedup_total(), row.speedup_active());
  }
  for (int part = 0; part < kNumStepParts; ++part) {
    if (static_cast<StepPart>(part) == StepPart::kRouter && !plan.moe()) continue;
    if (static_cast<StepPart>(part) == StepPart::kOptimizer && plan.options.phase != Phase::kTrain) continue;
    line += fmt::format(" {:>4}", Share(time.part_s[static_cast<size_t>(part)], time.s));
  }
  if (plan.moe()) line += fmt::format(" {:>4}", Share(time.imbalance_s, time.s));
  line += fmt::format(" {:>4}", Share(time.sync_s, time.s));
  if (plan.options.parallel.ranks > 1) line += fmt::format(" {:>4}", Share(row.model.all_to_all_s, time.s));
  return line + "\n";
}

std::string Table(const Plan& plan) {
  std::string over(plan.moe() ? 51 : 42, ' '), header = "batch";
  if (plan.moe()) header += "  experts";
  header += fmt::format("  {:>8} {:>8}  {:>8}  {:<8}", "step", "tokens/s", "memory", "bound");
  if (plan.moe()) {
    over += " speed-up over ";
    header += fmt::format(" {:<7} {:>6} {:>6} ", "regime", "total", "active");
  }
  over += "  % of the step";
  header += plan.moe() ? " attn rout  ffn" : " attn  ffn";
  if (plan.options.phase == Phase::kTrain) header += " adam";
  header += plan.moe() ? " rest imba sync" : " rest sync";
  if (plan.options.parallel.ranks > 1) header += " a2a ";
  std::string text = "\n" + over + "\n" + header + "\n";
  for (const PlanRow& row : plan.rows) text += Line(plan, row);
  return text;
}

std::string Valley(const Plan& plan, const TextStyle& style) {
  const std::string drawn = Draw(ValleyOf(plan), style.width, style.unicode);
  return drawn.empty() ? "" : "\n" + drawn;
}

// Three digits, and no powers of ten.
std::string Number(double x) {
  return x < 99.95 ? fmt::format("{:.3g}", x) : fmt::format("{:.0f}", x);
}

std::string List(const std::vector<double>& batches) {
  std::vector<std::string> out;
  for (const double batch : batches) out.push_back(Number(batch));
  return out.empty() ? "none among these batches" : fmt::format("{}", fmt::join(out, ", "));
}

std::string BoundaryText(const Plan& plan) {
  const Boundaries& b = plan.boundaries;
  std::string text = "\nboundaries\n";
  const auto line = [&](const std::string& name, const std::string& value, const std::string& meaning) {
    text += fmt::format("  {:<6} {:>8}   {}\n", name, value, meaning);
  };
  const char* uniform = plan.options.measured != nullptr ? ", if routing were uniform" : "";
  if (plan.moe()) line("B_sat", Number(b.b_sat), fmt::format("(E/k) ln 20: 95 % of the experts are read{}", uniform));
  line("B_d", Number(b.b_d), std::string(MeaningOfBd(plan.options.phase)));
  if (!plan.moe()) return text;
  line("B_m", Number(b.b_m), "(E/k) B_d: so is every expert of the MoE");
  text += fmt::format("  speed-up over equal total passes {} at batch {}\n", kGain, List(plan.crossover_total));
  text += fmt::format("  speed-up over equal active is least, and back at 0.8, at batch {}\n", List(plan.crossover_active));
  return text + fmt::format("  plateau: {} as predicted{}; {} in theory (B_sat {} B_d)\n", plan.plateau.exists() ? "yes" : "no",
                            plan.plateau.deviation
                                ? fmt::format(", within {:.0f} % of 1 over batches {:.3g} to {:.3g}",
                                              100 * *plan.plateau.deviation, plan.plateau.from, 2 * plan.plateau.from)
                                : "",
                            b.plateau() ? "yes" : "no", b.plateau() ? "<" : ">=");
}

std::string Bounds(const Plan& plan) {
  const PlanOptions& options = plan.options;
  std::vector<std::string> bounds;
  if (options.max_s) bounds.push_back("at most " + FormatSeconds(*options.max_s) + " per step");
  if (options.memory_bytes) {
    bounds.push_back("at most " + FormatBytes(*options.memory_bytes));
  } else if (plan.memory_limit()) {
    bounds.push_back("the machine's " + FormatBytes(*plan.memory_limit()));
  }
  return fmt::format("{}", fmt::join(bounds, " and "));
}

// Why no batch is the best.
std::string NoBest(const Plan& plan) {
  const PlanRow& first = plan.rows.front();
  if (plan.options.memory_bytes || plan.fits(first)) {
    return fmt::format("none: batch {} takes {} and {}, the bounds are {}", first.batch, FormatSeconds(first.model.time.s),
                       FormatBytes(first.memory_bytes), Bounds(plan));
  }
  std::string text = fmt::format("none: batch {} takes {}, the machine has {}", first.batch, FormatBytes(first.memory_bytes),
                                 FormatBytes(*plan.memory_limit()));
  if (!plan.other_type || plan.other_type->type == plan.options.dtype.name) return text;
  return text + fmt::format("; --dtype {} takes {}{}", plan.other_type->type, FormatBytes(plan.other_type->memory_bytes),
                            plan.other_type->fits ? "" : ", the least of all");
}

std::string BestText(const Plan& plan) {
  const PlanOptions& options = plan.options;
  std::string text = "\n";
  if (plan.knee) {
    text += fmt::format("knee        batch {}: no doubling after it gives 10 % more tokens per second\n", *plan.knee);
  } else {
    text += "knee        none here: the last doubling still gives 10 % more tokens per second\n";
  }
  text += "best batch  ";
  const bool bounded = options.max_s || options.memory_bytes;
  if (!bounded && plan.best_batch == plan.knee && plan.fits(plan.rows.front())) {
    text += plan.knee ? fmt::format("{}, the knee", *plan.knee) : fmt::format("{} or more", plan.rows.back().batch);
    if (plan.memory_limit()) text += ", within " + Bounds(plan);
    return text + ": --max-ms and --memory bound it\n";
  }
  if (!plan.best) return text + NoBest(plan) + "\n";
  return text + fmt::format("{}{} {}: {} per step, {} tokens/s, {}\n", *plan.best_batch, bounded ? " of" : ", within",
                            Bounds(plan), FormatSeconds(plan.best->model.time.s), FormatCount(plan.best->model.tokens_per_s),
                            FormatBytes(plan.best->memory_bytes));
}

}  // namespace

TerminalPlot ValleyOf(const Plan& plan) {
  TerminalPlot plot{.title = "speed-up of the MoE over dense models", .x_name = "batch"};
  if (!plan.moe()) return plot;
  for (const PlanRow& row : plan.rows) plot.x.push_back(static_cast<double>(row.batch));
  plot.series = {{"of equal total size", plan.SpeedupTotal()}, {"of equal active size", plan.SpeedupActive()}};
  std::vector<std::string> regimes;
  for (const PlanRow& row : plan.rows) regimes.emplace_back(Name(row.regime));
  for (const RegimeBand& band : BandsOf(plan.Batches(), plan.SpeedupTotal(), regimes)) {
    plot.bands.push_back({band.from, band.to, band.name});
  }
  return plot;
}

std::string PlanText(const Plan& plan, const TextStyle& style) {
  std::string text = Header(plan) + MemoryTable(plan) + Table(plan) + AssumedText(plan) + Valley(plan, style) +
                     BoundaryText(plan) + BestText(plan);
  std::string advice = "\n";
  for (const std::string& line : PlanAdvice(plan)) advice += "- " + line + "\n";
  return text + Wrapped(advice, 2);
}

}  // namespace moe
