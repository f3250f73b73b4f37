// Reads runs and their metrics, and the statistics over seeds.

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "moe/files/atomic_file.h"
#include "moe/files/json.h"
#include "moe/planner/compare_report.h"
#include "moe/planner/compare_summary.h"
#include "moe/train/run_folder.h"

namespace moe {
namespace {

using nlohmann::json;

// A line of metrics.jsonl, what of it is needed here.
struct Line {
  int64_t step = 0, tokens = 0;
  double loss = 0, drop_rate = 0, max_violation = 0, seconds = 0;
  std::optional<double> largest_logit, bits_per_byte;
};

Line LineOf(const json& line) {
  Line out{.step = line.at("step").get<int64_t>(),
           .tokens = line.at("tokens").get<int64_t>(),
           .loss = line.at("loss").get<double>(),
           .drop_rate = line.at("drop_rate").get<double>()};
  for (const json& part : line.at("seconds_by_part")) out.seconds += part.get<double>();
  int64_t layers = 0;
  for (const json& layer : line.at("layers")) {
    if (layer.is_null()) continue;
    out.max_violation += layer.at("max_violation").get<double>();
    ++layers;
  }
  if (layers > 0) out.max_violation /= static_cast<double>(layers);
  if (layers > 0 && line.contains("largest_logit")) out.largest_logit = line.at("largest_logit").get<double>();
  if (line.contains("bits_per_byte")) out.bits_per_byte = line.at("bits_per_byte").get<double>();
  return out;
}

Result<std::vector<Line>> ReadLines(const std::string& folder) {
  const std::string path = PathIn(folder, "metrics.jsonl");
  MOE_TRY(const std::string text, ReadFile(path));
  std::istringstream stream(text);
  std::vector<Line> lines;
  for (std::string line; std::getline(stream, line);) {
    const std::string where = fmt::format("{}:{}", path, lines.size() + 1);
    MOE_TRY(const json parsed, ParseJson(line, where));
    try {
      lines.push_back(LineOf(parsed));
    } catch (const json::exception& error) {
      return Err(where, "got something else than a training step: {}", error.what());
    }
  }
  return lines;
}

template <class F>
double MeanOf(std::span<const Line> lines, F&& value) {
  double sum = 0;
  for (const Line& line : lines) sum += value(line);
  return lines.empty() ? 0 : sum / static_cast<double>(lines.size());
}

std::optional<double> LargestLogit(std::span<const Line> lines) {
  std::optional<double> largest;
  for (const Line& line : lines) {
    if (line.largest_logit) largest = std::max(largest.value_or(0), *line.largest_logit);
  }
  return largest;
}

std::vector<ComparePoint> CurveOf(std::span<const Line> lines) {
  std::vector<ComparePoint> curve;
  size_t begin = 0;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (!lines[i].bits_per_byte) continue;
    const auto since = lines.subspan(begin, i + 1 - begin);
    curve.push_back({.step = lines[i].step,
                     .tokens = lines[i].tokens,
                     .bits_per_byte = *lines[i].bits_per_byte,
                     .train_loss = MeanOf(since, [](const Line& line) { return line.loss; }),
                     .max_violation = MeanOf(since, [](const Line& line) { return line.max_violation; }),
                     .drop_rate = MeanOf(since, [](const Line& line) { return line.drop_rate; }),
                     .largest_logit = LargestLogit(since)});
    begin = i + 1;
  }
  return curve;
}

Result<CompareResult> ResultOf(const std::string& folder, const RunSummaryFile& summary) {
  MOE_TRY(const std::vector<Line> lines, ReadLines(folder));
  CompareResult out{.seed = summary.seed,
                    .folder = folder,
                    .failed = summary.failed,
                    .steps = std::ssize(lines),
                    .curve = CurveOf(lines),
                    .drop_rate = MeanOf(lines, [](const Line& line) { return line.drop_rate; }),
                    .largest_logit = LargestLogit(lines),
                    .parameters_total = summary.parameters_total,
                    .parameters_active = summary.parameters_active,
                    .held_out_tokens = summary.held_out.num_tokens,
                    .held_out_bytes = summary.held_out.num_bytes};
  std::vector<double> losses, seconds;
  for (const Line& line : lines) losses.push_back(line.loss), seconds.push_back(line.seconds);
  out.spikes = FindSpikes(losses);
  if (!seconds.empty()) out.step_s = Quantile(seconds, 0.5);
  const size_t last = std::max<size_t>(1, lines.size() / 10);
  if (!lines.empty()) {
    out.train_loss = MeanOf(std::span(lines).last(last), [](const Line& line) { return line.loss; });
  }
  if (summary.held_out.num_tokens > 0) out.bits_per_byte = summary.held_out.bits_per_byte();
  for (const ComparePoint& point : out.curve) {
    if (out.best_bits_per_byte == 0 || point.bits_per_byte < out.best_bits_per_byte)
      out.best_bits_per_byte = point.bits_per_byte;
  }
  double layers = 0;
  for (const ExpertLoad& load : summary.held_out.layers) {
    if (load.tokens_per_expert.empty()) continue;
    out.max_violation += load.max_violation, out.held_out_drop_rate += load.drop_rate, out.dead_experts += load.dead_experts;
    ++layers;
  }
  if (layers > 0) out.max_violation /= layers, out.held_out_drop_rate /= layers;
  for (size_t i = 0; i < std::min(summary.times.base_s.size(), summary.times.own_s.size()); ++i) {
    out.step_ratios.push_back(summary.times.own_s[i] / summary.times.base_s[i]);
  }
  return out;
}

Status CheckSame(const RunSummaryFile& first, const std::string& first_folder, const RunSummaryFile& other,
                 const std::string& folder) {
  const auto check = [&](const char* what, const std::string& got, const std::string& wanted) -> Status {
    if (got == wanted) return {};
    return Err(folder, "got a run with another {} ({}), expected that of {} ({}); remove the folder and it is run anew", what,
               got, first_folder, wanted);
  };
  MOE_TRY(check("training text", other.data_digest, first.data_digest));
  MOE_TRY(check("held-out text", other.held_out_digest, first.held_out_digest));
  return check("instruction set", other.kernels, first.kernels);
}

}  // namespace

LossSpikes FindSpikes(std::span<const double> losses) {
  LossSpikes spikes;
  for (int64_t i = kSpikeLeast; i < std::ssize(losses); ++i) {
    const int64_t begin = std::max<int64_t>(0, i - kSpikeWindow);
    const auto before = losses.subspan(static_cast<size_t>(begin), static_cast<size_t>(i - begin));
    const double above = losses[static_cast<size_t>(i)] - Quantile({before.begin(), before.end()}, 0.5);
    spikes.steps += above > kSpikeMargin;
    spikes.worst = std::max(spikes.worst, above);
  }
  return spikes;
}

Spread SpreadOf(std::span<const double> values) {
  Spread out{.count = std::ssize(values)};
  if (values.empty()) return out;
  for (const double value : values) out.mean += value / static_cast<double>(values.size());
  double squares = 0;
  for (const double value : values) squares += (value - out.mean) * (value - out.mean);
  if (values.size() > 1) out.deviation = std::sqrt(squares / static_cast<double>(values.size() - 1));
  return out;
}

double Quantile(std::vector<double> values, double share) {
  std::ranges::sort(values);
  const double at = share * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(at);
  const double low = values[below], high = values[std::min(below + 1, values.size() - 1)];
  return low + (high - low) * (at - static_cast<double>(below));
}

Result<CompareReport> CollectComparison(const ComparePlan& plan) {
  CompareReport report{.plan = plan, .runs = {}};
  report.runs.resize(plan.variants.size());
  std::optional<RunSummaryFile> first;
  std::string first_folder;
  WeightsSeen weights;
  for (size_t i = 0; i < plan.variants.size(); ++i) {
    if (plan.variants[i].runs_of != i) {
      report.runs[i] = report.runs[plan.variants[i].runs_of];
      continue;
    }
    for (const int64_t seed : plan.seeds) {
      const std::string folder = plan.FolderOf(i, seed);
      if (!Holds(folder, kSummaryName)) continue;
      MOE_TRY(const RunSummaryFile summary, ReadRunSummary(folder));
      if (!first) {
        first = summary, first_folder = folder;
        report.kernels = summary.kernels, report.threads = summary.threads;
      }
      MOE_TRY(CheckSame(*first, first_folder, summary, folder));
      MOE_TRY(CheckWeights(plan.variants[i].recipe.model.from, summary.weights_digest, folder, weights));  // also of --show
      MOE_TRY(report.runs[i].emplace_back(), ResultOf(folder, summary));
    }
  }
  report.steps = plan.base().recipe.train.steps;
  for (const auto& runs : report.runs) {
    for (const CompareResult& run : runs) report.steps = std::max(report.steps, run.steps);
  }
  return report;
}

bool CompareReport::complete() const {
  return std::ranges::all_of(runs, [&](const auto& of) { return of.size() == plan.seeds.size(); });
}

std::vector<double> ValuesOf(const CompareReport& report, size_t variant, double CompareResult::*member) {
  std::vector<double> values;
  for (const CompareResult& run : report.runs[variant]) {
    if (run.failed.empty()) values.push_back(run.*member);
  }
  return values;
}

std::vector<double> DifferencesOf(const CompareReport& report, size_t variant) {
  std::vector<double> differences;
  for (const CompareResult& run : report.runs[variant]) {
    for (const CompareResult& other : report.runs[report.plan.against]) {
      if (run.seed != other.seed || !run.failed.empty() || !other.failed.empty()) continue;
      differences.push_back(run.bits_per_byte - other.bits_per_byte);
    }
  }
  return differences;
}

double StepRatioOf(const CompareReport& report, size_t variant) {
  if (report.plan.variants[variant].runs_of == 0) return report.runs[0].empty() ? 0 : 1;
  for (const CompareResult& run : report.runs[variant]) {
    if (!run.step_ratios.empty()) return Quantile(run.step_ratios, 0.5);
  }
  return 0;
}

double StepSecondsOf(const CompareReport& report, size_t variant) {
  const std::vector<double> own = ValuesOf(report, variant, &CompareResult::step_s);
  const std::vector<double> base = ValuesOf(report, 0, &CompareResult::step_s);
  const double ratio = StepRatioOf(report, variant);
  if (ratio > 0 && !base.empty()) return Quantile(base, 0.5) * ratio;
  return own.empty() ? 0 : Quantile(own, 0.5);
}

std::vector<ComparePoint> MeanCurve(const CompareReport& report, size_t variant) {
  std::vector<const CompareResult*> runs;
  for (const CompareResult& run : report.runs[variant]) {
    if (run.failed.empty()) runs.push_back(&run);
  }
  std::vector<ComparePoint> mean;
  const double share = 1 / static_cast<double>(std::max<size_t>(1, runs.size()));
  for (size_t i = 0; !runs.empty() && i < runs[0]->curve.size(); ++i) {
    ComparePoint sum{.step = runs[0]->curve[i].step, .tokens = runs[0]->curve[i].tokens};
    for (const CompareResult* run : runs) {
      if (i >= run->curve.size() || run->curve[i].step != sum.step) return mean;
      const ComparePoint& point = run->curve[i];
      sum.bits_per_byte += point.bits_per_byte * share;
      sum.train_loss += point.train_loss * share;
      sum.max_violation += point.max_violation * share;
      sum.drop_rate += point.drop_rate * share;
      if (point.largest_logit) sum.largest_logit = sum.largest_logit.value_or(0) + *point.largest_logit * share;
    }
    mean.push_back(sum);
  }
  return mean;
}

std::vector<std::pair<std::string, std::vector<size_t>>> RowsByAxis(const ComparePlan& plan) {
  std::vector<std::pair<std::string, std::vector<size_t>>> axes;
  for (const std::string& axis : plan.axes) {
    std::vector<size_t> rows;
    bool has_base = false;
    for (size_t i = 1; i < plan.variants.size(); ++i) {
      if (plan.variants[i].axis != axis) continue;
      rows.push_back(i);
      has_base |= plan.variants[i].runs_of == 0;
    }
    if (!has_base) rows.insert(rows.begin(), 0);
    axes.emplace_back(axis, std::move(rows));
  }
  return axes;
}

}  // namespace moe
