#include <fmt/format.h>

#include <algorithm>

#include "moe/base/progress.h"
#include "moe/planner/sweep_report.h"
#include "moe/planner/sweep_words.h"
#include "moe/planner/wrapped.h"

namespace moe {
namespace {

constexpr double kAsFast = 0.1;  // ratios within this of 1 are called equal

// "8 experts of width 256, top-2" of the first MoE layer.
std::string Experts(const ModelConfig& config) {
  for (const LayerSpec& layer : config.layers) {
    if (layer.ffn != FfnKind::kMoe) continue;
    const MoeConfig& moe = layer.moe;
    return fmt::format("{}, top-{}{}", ExpertsText(moe), moe.router.top_k,
                       moe.shared_width() > 0 ? fmt::format(", shared width {}", moe.shared_width()) : "");
  }
  return fmt::format("dense, width {}", config.layers.front().ffn_width);
}

int64_t NumExperts(const ModelConfig& config) {
  for (const LayerSpec& layer : config.layers) {
    if (layer.ffn == FfnKind::kMoe) return layer.moe.router.num_experts;
  }
  return 0;
}

std::string Gb(double bytes_per_s) {
  return fmt::format("{:.1f}", bytes_per_s / 1e9);
}

std::string Gflop(double flop) {
  return flop < 999.5e9 ? fmt::format("{:.3g}", flop / 1e9) : fmt::format("{:.0f}", flop / 1e9);
}

// What was measured.
std::string StepText(const SweepReport& report) {
  std::string text;
  switch (report.phase) {
    case Phase::kDecode:
      text = fmt::format("One decode step: B sequences, {} past positions each, one new token per sequence", report.context);
      break;
    case Phase::kPrefill:
      text = fmt::format("One prefill: B tokens, of prompts of at most {}", report.context);
      break;
    case Phase::kTrain:
      text = fmt::format("One training step: B tokens in sequences of at most {}, forward, backward, AdamW", report.context);
      break;
  }
  return text;
}

std::string Header(const SweepReport& report, const std::string& name) {
  std::string text = StepText(report) + "\n\n";
  text += fmt::format("{:<13} {}", "machine", MeasuredOn(report));
  if (!report.rows.empty()) {
    const ReadRange reads = ReadsOf(report);
    text += fmt::format(", read probe {} to {} GB/s", Gb(reads.min), Gb(reads.max));
  }
  text += "\n";
  if (const std::string forced = ForcedText(report.routing); !forced.empty()) {
    text += fmt::format("{:<13} tokens {}\n", "routing", forced);
  }
  for (const SweepSubject& subject : report.subjects) {
    const bool model = subject.role == SweepRole::kModel;
    text += fmt::format(
        "{:<13} {}{} parameters, {} active; {} {}, {}; {} of {} weights{}\n", SweepLabel(subject), model ? name + ": " : "",
        FormatCount(static_cast<double>(subject.parameters.total)), FormatCount(static_cast<double>(subject.parameters.active)),
        subject.config.layers.size(), subject.config.layers.size() == 1 ? "layer" : "layers", Experts(subject.config),
        FormatBytes(static_cast<double>(subject.weight_bytes)), Name(report.format), subject.random_weights ? ", random" : "");
  }
  return text;
}

std::string SpeedTable(const SweepReport& report) {
  const ModelConfig& config = report.subjects.front().config;
  const bool twins = report.subjects.size() > 1;
  std::string over = fmt::format("\n{:<16}", ""),
              header = fmt::format("{:>5}  {:>9}", "batch", config.has_experts() ? "experts" : "");
  over += fmt::format("  {:<{}}", "tokens per second", 14 * report.subjects.size() - 2);
  if (twins) over += "  speed-up of the MoE over";
  for (const SweepSubject& subject : report.subjects) header += fmt::format("  {:>12}", SweepLabel(subject));
  for (const SweepSubject& subject : report.subjects) {
    if (subject.role != SweepRole::kModel) header += fmt::format("  {:>12}", SweepLabel(subject));
  }
  std::string text = over + "\n" + header + "\n";
  for (const SweepRow& row : report.rows) {
    const double distinct = row.cells.front().mean_distinct_experts(config);
    text += fmt::format("{:>5}  {:>9}", row.batch,
                        config.has_experts() ? fmt::format("{:.1f}/{}", distinct, NumExperts(config)) : "");
    for (const SweepCell& cell : row.cells) {
      text += fmt::format("  {:>12}", FormatCount(static_cast<double>(row.batch) / cell.s_per_step));
    }
    for (const SweepSubject& subject : report.subjects) {
      if (subject.role != SweepRole::kModel) text += fmt::format("  {:>11.2f}x", *report.Speedup(row, subject.role));
    }
    text += "\n";
  }
  return text;
}

// "1.15..1.40 ms"
std::string Range(double least, double most) {
  const std::string low = FormatSeconds(least), high = FormatSeconds(most);
  const size_t low_unit = low.find(' '), high_unit = high.find(' ');
  const bool same =
      low_unit != std::string::npos && high_unit != std::string::npos && low.substr(low_unit) == high.substr(high_unit);
  return (same ? low.substr(0, low_unit) : low) + ".." + high;
}

std::string WorkTable(const SweepReport& report) {
  std::string text = fmt::format("\n{:>5}  {:<12}  {:>9}  {:>18}  {:>9}  {:>8}  {:>6}  {:>8}  {:>8}\n", "batch", "model",
                                 "step", "least..most", "memory", "GFLOP", "GB/s", "of probe", "GFLOP/s");
  for (const SweepRow& row : report.rows) {
    for (size_t i = 0; i < row.cells.size(); ++i) {
      const SweepCell& cell = row.cells[i];
      const Cost cost = cell.cost;
      const double bytes_per_s = cost.bytes / cell.s_per_step;
      text +=
          fmt::format("{:>5}  {:<12}  {:>9}  {:>18}  {:>9}  {:>8}  {:>6}  {:>6.0f} %  {:>8.1f}\n",
                      i == 0 ? std::to_string(row.batch) : "", SweepLabel(report.subjects[i]), FormatSeconds(cell.s_per_step),
                      Range(cell.s_min, cell.s_max), FormatBytes(cost.bytes), Gflop(cost.flop), Gb(bytes_per_s),
                      100 * bytes_per_s / row.read_bytes_per_s, cost.flop / cell.s_per_step / 1e9);
    }
  }
  return text;
}

// Of the model itself; waits are in the parts.
std::string PartsTable(const SweepReport& report) {
  std::string text = fmt::format("\n{:>5}  where the step's time goes\n{:>5}", "", "batch");
  for (int p = 0; p < kNumStepParts; ++p) {
    if (static_cast<StepPart>(p) == StepPart::kOptimizer && report.phase != Phase::kTrain) continue;
    text += fmt::format("  {:>9}", Name(static_cast<StepPart>(p)));
  }
  text += fmt::format("  {:>9}\n", "waiting");
  for (const SweepRow& row : report.rows) {
    const SweepCell& cell = row.cells.front();
    text += fmt::format("{:>5}", row.batch);
    for (int p = 0; p < kNumStepParts; ++p) {
      if (static_cast<StepPart>(p) == StepPart::kOptimizer && report.phase != Phase::kTrain) continue;
      text += fmt::format("  {:>7.1f} %", 100 * cell.part_s[static_cast<size_t>(p)] / cell.s_per_step);
    }
    text += fmt::format("  {:>7.1f} %\n", 100 * cell.wait_s / cell.s_per_step);
  }
  return text;
}

// "Against the dense model of equal total parameters the MoE is faster at batch 1 to 8 (1.40x to 3.10x), ..."
std::string SpeedNote(const SweepReport& report, SweepRole twin, std::string_view words) {
  enum { kSlower, kSame, kFaster };
  static constexpr std::string_view kWords[] = {"slower", "about as fast", "faster"};
  std::vector<std::string> parts;
  for (size_t begin = 0, end = 0; begin < report.rows.size(); begin = end) {
    const auto speed = [&](size_t i) {
      const double ratio = *report.Speedup(report.rows[i], twin);
      return ratio > 1 + kAsFast ? kFaster : ratio < 1 - kAsFast ? kSlower : kSame;
    };
    double least = 1e300, most = 0;
    for (end = begin; end < report.rows.size() && speed(end) == speed(begin); ++end) {
      least = std::min(least, *report.Speedup(report.rows[end], twin));
      most = std::max(most, *report.Speedup(report.rows[end], twin));
    }
    const int64_t first = report.rows[begin].batch, last = report.rows[end - 1].batch;
    const std::string batches = first == last ? std::to_string(first) : fmt::format("{} to {}", first, last);
    const std::string ratios = first == last ? fmt::format("{:.2f}x", least) : fmt::format("{:.2f}x to {:.2f}x", least, most);
    parts.push_back(fmt::format("{} at batch {} ({})", kWords[speed(begin)], batches, ratios));
  }
  return fmt::format("- {} the MoE is {}.\n", AgainstTwin(words), fmt::join(parts, ", "));
}

std::string Notes(const SweepReport& report) {
  std::string text;
  if (report.Find(SweepRole::kDenseTotal) != nullptr) text += SpeedNote(report, SweepRole::kDenseTotal, "total parameters");
  if (report.Find(SweepRole::kDenseActive) != nullptr) text += SpeedNote(report, SweepRole::kDenseActive, "active parameters");
  const ModelConfig& config = report.subjects.front().config;
  if (!config.has_experts()) {
    text += "- This model has no experts: there is nothing to compare it with, it was measured alone.\n";
  } else {
    text += fmt::format(
        "- 95 % of the experts are touched from batch {:.0f} on if routing is uniform; from there the MoE reads what "
        "its equal-total twin reads.\n",
        SaturationBatch(config));
  }
  const ReadRange reads = ReadsOf(report);
  if (reads.max > 1.25 * reads.min) {
    text += fmt::format(
        "- This machine's memory changed speed while measuring ({} to {} GB/s). Models took turns and rounds of "
        "another phase were left out, so ratios hold better than rates.\n",
        Gb(reads.min), Gb(reads.max));
  }
  if (report.core_wait > kQuietCores) {
    text += fmt::format(
        "- Other programs ran on these cores: threads waited {:.0f} % of the time for one. All figures are too slow, and "
        "ratios "
        "doubtful: a short step fits between two interruptions, a long one does not. The least step times are the better "
        "guide.\n",
        100 * report.core_wait);
  }
  int64_t again = 0;
  for (const SweepRow& row : report.rows) again += row.turns_again;
  if (again > 0) {
    text += fmt::format("- {} {} taken again: the hypervisor moved the cores meanwhile.\n", again,
                        again == 1 ? "turn was" : "turns were");
  }
  std::vector<std::string> cached;
  for (const SweepSubject& subject : report.subjects) {
    if (subject.weight_bytes < report.cache_bytes) cached.push_back(SweepLabel(subject));
  }
  if (!cached.empty()) {
    text += fmt::format(
        "- Weights of {} fit in the last-level cache ({:.0f} MiB) and stay there from step to step, as in any decode "
        "loop: more than 100 % of the probe is possible.\n",
        fmt::join(cached, ", "), static_cast<double>(report.cache_bytes) / (1 << 20));
  }
  std::vector<std::string> partly;
  for (size_t i = 0; i < report.subjects.size(); ++i) {
    const bool faster = std::any_of(report.rows.begin(), report.rows.end(), [&](const SweepRow& row) {
      return row.cells[i].cost.bytes > 1.05 * row.cells[i].s_per_step * row.read_bytes_per_s;
    });
    if (faster && report.subjects[i].weight_bytes >= report.cache_bytes) partly.push_back(SweepLabel(report.subjects[i]));
  }
  if (!partly.empty()) {
    text += fmt::format(
        "- At more than 100 % of the probe a step of {} found part of what it reads still in the last-level cache ({:.0f} "
        "MiB).\n",
        fmt::join(partly, ", "), static_cast<double>(report.cache_bytes) / (1 << 20));
  }
  if (report.interrupted) text += fmt::format("- {}\n", kStoppedEarly);
  return text;
}

}  // namespace

std::string SweepLabel(const SweepSubject& subject) {
  switch (subject.role) {
    case SweepRole::kModel:
      return subject.config.has_experts() ? "MoE" : "dense";
    case SweepRole::kDenseActive:
      return "equal active";
    case SweepRole::kDenseTotal:
      return "equal total";
  }
  return "";
}

std::string SweepText(const SweepReport& report, const std::string& name) {
  std::string text = Wrapped(Header(report, name), 14);
  if (report.rows.empty()) return text + "\nStopped before the first batch was measured.\n";
  text += SpeedTable(report) + WorkTable(report) + PartsTable(report) + "\n";
  return text + Wrapped(Notes(report) + fmt::format("- Medians {}.\n", RoundsText(report)), 2);
}

}  // namespace moe
