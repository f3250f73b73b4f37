// A comparison as tables: for the terminal, for Markdown; and how it was measured, in words.

#include <algorithm>
#include <cmath>

#include "moe/base/cpu_info.h"
#include "moe/base/progress.h"
#include "moe/planner/compare_report.h"
#include "moe/planner/wrapped.h"

namespace moe {
namespace {

const std::string kNone = "–";

std::string Count(int64_t count) {
  return FormatCount(static_cast<double>(count));
}

std::string WithSpread(std::span<const double> values, bool sign, int digits) {
  if (values.empty()) return kNone;
  const Spread spread = SpreadOf(values);
  const std::string mean = sign ? fmt::format("{:+.{}f}", spread.mean, digits) : fmt::format("{:.{}f}", spread.mean, digits);
  return spread.count == 1 ? mean : fmt::format("{} ± {:.{}f}", mean, spread.deviation, digits);
}

std::string Mean(std::span<const double> values, const char* format, double scale = 1) {
  return values.empty() ? kNone : fmt::format(fmt::runtime(format), SpreadOf(values).mean * scale);
}

bool HasExperts(const CompareVariant& variant) {
  return variant.recipe.model.ffn == RecipeFfn::kMoe;
}

std::vector<std::string> RowOf(const CompareReport& report, size_t i) {
  const CompareVariant& variant = report.plan.variants[i];
  const auto values = [&](double CompareResult::*member) { return ValuesOf(report, i, member); };
  std::vector<double> logits, spikes;
  int64_t failed = 0;
  for (const CompareResult& run : report.runs[i]) {
    failed += !run.failed.empty();
    if (run.largest_logit) logits.push_back(*run.largest_logit);
    spikes.push_back(static_cast<double>(run.spikes.steps));
  }
  const bool itself = variant.runs_of == report.plan.variants[report.plan.against].runs_of;
  const double ratio = StepRatioOf(report, i), step_s = StepSecondsOf(report, i);
  const auto load = [&](const std::string& text) { return HasExperts(variant) ? text : kNone; };
  const int64_t runs = std::ssize(report.runs[i]);
  return {variant.name,
          WithSpread(values(&CompareResult::bits_per_byte), false, 4),
          itself ? kNone : WithSpread(DifferencesOf(report, i), true, 4),
          Mean(values(&CompareResult::best_bits_per_byte), "{:.4f}"),
          Mean(values(&CompareResult::train_loss), "{:.4f}"),
          load(Mean(values(&CompareResult::max_violation), "{:.3f}")),
          load(Mean(values(&CompareResult::drop_rate), "{:.2f} %", 100)),
          logits.empty() ? kNone : fmt::format("{:.1f}", *std::ranges::max_element(logits)),
          Mean(spikes, "{:.3g}"),
          step_s > 0 ? fmt::format("{:.1f} ms", step_s * 1e3) : kNone,
          ratio > 0 ? fmt::format("{:.2f}", ratio) : kNone,
          failed > 0 ? fmt::format("{}, {} failed", runs, failed) : fmt::format("{}", runs)};
}

std::string Padded(const std::string& text, int width, bool right) {
  const std::string blanks(static_cast<size_t>(std::max(0, width - DisplayWidth(text))), ' ');
  return right ? blanks + text : text + blanks;
}

std::string TableText(const HtmlTable& table) {
  std::vector<int> widths(table.head.size());
  const auto grow = [&](const std::vector<std::string>& row) {
    for (size_t i = 0; row.size() == table.head.size() && i < row.size(); ++i)
      widths[i] = std::max(widths[i], DisplayWidth(row[i]));
  };
  grow(table.head);
  for (const auto& row : table.rows) grow(row);
  const auto line = [&](const std::vector<std::string>& row) {
    if (row.size() != table.head.size()) return row.front() + "\n";
    std::string out;
    for (size_t i = 0; i < row.size(); ++i) out += "  " + Padded(row[i], widths[i], i >= table.text_columns);
    return out.substr(0, out.find_last_not_of(' ') + 1) + "\n";
  };
  std::string out = line(table.head);
  for (const auto& row : table.rows) out += line(row);
  return out;
}

std::string TableMarkdown(const HtmlTable& table) {
  const auto escaped = [](std::string text) {
    for (size_t at = text.find('|'); at != std::string::npos; at = text.find('|', at + 2)) text.insert(at, "\\");
    return text;
  };
  const auto line = [&](const std::vector<std::string>& row) {
    std::string out = "|";
    for (const std::string& cell : row) out += " " + escaped(cell) + " |";
    return out + std::string(row.size() == 1 ? table.head.size() - 1 : 0, '|') + "\n";
  };
  std::string out = line(table.head) + "|";
  for (size_t i = 0; i < table.head.size(); ++i) out += i < table.text_columns ? "---|" : "---:|";
  out += "\n";
  for (const auto& row : table.rows) out += row.size() == 1 ? line({"**" + row[0] + "**"}) : line(row);
  return out;
}

// Everything that every form of the report says, with `heading` before each part.
template <class Heading, class Table, class Note>
std::string Compose(const CompareReport& report, Heading&& heading, Table&& table, Note&& note) {
  std::string out = heading("Results") + table(CompareTable(report)) + heading("Variants") + table(VariantsTable(report));
  out += heading("How it was measured");
  for (const std::string& sentence : CompareNotes(report)) out += note(sentence);
  return out;
}

}  // namespace

HtmlTable CompareTable(const CompareReport& report) {
  const std::string against = report.plan.variants[report.plan.against].name;
  HtmlTable table{.head = {"variant", "bits/byte", "against " + against, "best", "train loss", "max viol.", "dropped", "logit",
                           "spikes", "step", "ratio", "runs"}};
  for (const auto& [axis, rows] : RowsByAxis(report.plan)) {
    table.rows.push_back({axis});
    for (const size_t row : rows) table.rows.push_back(RowOf(report, row));
  }
  return table;
}

HtmlTable VariantsTable(const CompareReport& report) {
  HtmlTable table{.head = {"variant", "what it changes", "parameters", "active"}, .text_columns = 2};
  const auto add = [&](size_t i) {
    const CompareVariant& variant = report.plan.variants[i];
    std::string sets;
    for (const std::string& set : variant.sets) sets += (sets.empty() ? "" : " ") + set;
    const CompareVariant& owner = report.plan.variants[variant.runs_of];
    if (variant.runs_of != i) sets += (sets.empty() ? "" : " ") + fmt::format("(the runs of {})", owner.name);
    if (variant.sets.empty() && variant.runs_of == i) sets = variant.path;
    const auto& runs = report.runs[i];
    table.rows.push_back({variant.name, sets, runs.empty() ? kNone : Count(runs[0].parameters_total),
                          runs.empty() ? kNone : Count(runs[0].parameters_active)});
  };
  add(0);
  for (const std::string& axis : report.plan.axes) {
    table.rows.push_back({axis});
    for (size_t i = 1; i < report.plan.variants.size(); ++i) {
      if (report.plan.variants[i].axis == axis) add(i);
    }
  }
  return table;
}

std::vector<std::string> CompareNotes(const CompareReport& report) {
  const Recipe& base = report.plan.base().recipe;
  const CompareVariant& against = report.plan.variants[report.plan.against];
  int64_t tokens = 0, bytes = 0;
  bool timed = false;
  for (const auto& runs : report.runs) {
    for (const CompareResult& run : runs) {
      tokens = std::max(tokens, run.held_out_tokens), bytes = std::max(bytes, run.held_out_bytes);
      timed |= !run.step_ratios.empty();
    }
  }
  std::vector<std::string> notes;
  notes.push_back(fmt::format(
      "Every run took {} steps of {} tokens, {} tokens in all, of the same text in the same order; seeds {}; {}, {}, {} "
      "threads, {}.",
      report.steps, base.train.batch_tokens, Count(report.steps * base.train.batch_tokens), fmt::join(report.plan.seeds, ", "),
      Name(base.train.dtype), report.kernels, report.threads, GetCpuInfo().name));
  notes.push_back(fmt::format(
      "bits/byte: of the last model, on {} tokens ({}) of held-out text; mean over seeds ± standard deviation. against {}: the "
      "difference seed by seed. best: the lowest evaluation on the way. train loss: nats per token, over the last tenth of the "
      "steps.",
      Count(tokens), FormatBytes(static_cast<double>(bytes)), against.name));
  notes.push_back(
      "max viol.: load of the fullest expert over the mean, less 1, over the whole held-out text, mean over layers; in charts "
      "and "
      "curves it is of training batches, which are smaller and so less even. dropped: share of slots in training; evaluations "
      "drop "
      "nothing unless router.eval_capacity_factor says so.");
  notes.push_back(fmt::format(
      "logit: the largest of the router in training, over all runs. spikes: steps whose loss lies more than {} nats above the "
      "median of the {} before, mean over runs.",
      kSpikeMargin, kSpikeWindow));
  notes.push_back(
      timed ? "step: when a run of the first seed was trained, it and the base went on for some steps in turns, so that a "
              "machine that changes speed slows both alike; ratio is the median of what each round gave, step the "
              "base's median over its runs times that. Seconds are steps times it; evaluations are not counted."
            : "step: median over the runs' own steps, not measured beside one another.");
  for (size_t i = 0; i < report.runs.size(); ++i) {
    for (const CompareResult& run : report.runs[i]) {
      if (run.failed.empty() || report.plan.variants[i].runs_of != i) continue;
      notes.push_back(fmt::format("{}, seed {}, went wrong at {}.", report.plan.variants[i].name, run.seed, run.failed));
    }
  }
  if (!report.complete()) notes.push_back("Not all runs are done: the same command goes on with them.");
  return notes;
}

std::string CompareText(const CompareReport& report) {
  return Compose(
      report, [](const char* what) { return what == std::string_view("Results") ? "\n" : fmt::format("\n{}\n", what); },
      TableText, [](const std::string& sentence) { return Wrapped("  " + sentence, 4); });
}

std::string CompareMarkdown(const CompareReport& report) {
  return Compose(
      report, [](const char* what) { return fmt::format("\n## {}\n\n", what); }, TableMarkdown,
      [](const std::string& sentence) { return "* " + sentence + "\n"; });
}

}  // namespace moe
