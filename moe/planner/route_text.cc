#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "moe/base/progress.h"
#include "moe/mixture/moe_metrics.h"
#include "moe/planner/route_report.h"

namespace moe {
namespace {

constexpr int kFewestColumns = 60;
constexpr size_t kMostListed = 32;  // experts of a layer that nobody asked for

// `share` of `width` columns, in eighths of one; plain: whole '#'.
std::string Bar(double share, int width, bool plain) {
  static constexpr std::array<std::string_view, 8> kParts = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const auto eighths = static_cast<int>(std::lround(std::clamp(share, 0.0, 1.0) * width * 8));
  if (plain) return std::string(static_cast<size_t>((eighths + 4) / 8), '#');
  std::string bar;
  for (int i = 0; i < eighths / 8; ++i) bar += "█";
  return bar + std::string(kParts[static_cast<size_t>(eighths % 8)]);
}

std::string Padded(std::string text, int columns) {
  text.append(static_cast<size_t>(std::max(0, columns - DisplayWidth(text))), ' ');
  return text;
}

// As many bars a line as there is room for; further lines begin with `indent` blanks.
std::string BarsInLines(std::span<const int64_t> counts, int indent, int columns) {
  const int64_t most = *std::ranges::max_element(counts);
  const auto room = static_cast<size_t>(std::max(8, columns - indent));
  std::string out;
  for (size_t begin = 0; begin < counts.size(); begin += room) {
    std::vector<int64_t> part(counts.begin() + static_cast<std::ptrdiff_t>(begin),
                              counts.begin() + static_cast<std::ptrdiff_t>(std::min(counts.size(), begin + room)));
    const size_t shown = part.size();
    part.push_back(most);  // so that all lines have the same scale
    std::string bars = LoadBars(part);
    bars.resize(bars.size() - std::string_view("█").size());
    out += (begin == 0 ? "" : "\n" + std::string(static_cast<size_t>(indent), ' ')) + bars;
    if (shown < room) break;
  }
  return out;
}

std::string Loads(const RouteReport& report, const RouteTextOptions& options) {
  const std::string head = fmt::format("{:>5} {:>9} {:>5} {:>8} {:>5} {:>6} {:>8} {:>5}  ", "layer", "max/mean", "CV",
                                       "entropy", "dead", "gate", "|logit|", "bits");
  std::string text = head + "load of each expert\n";
  for (const LayerRoutes& layer : report.layers) {
    const ExpertLoad& load = layer.load;
    text += fmt::format("{:>5} {:>9.2f} {:>5.2f} {:>8.3f} {:>5} {:>6.3f} {:>8.2f} {:>5.2f}  ", layer.layer,
                        1 + load.max_violation, load.coefficient_of_variation, load.entropy, load.dead_experts, load.gate_mean,
                        load.largest_logit, layer.information.excess_bits());
    text += BarsInLines(load.tokens_per_expert, DisplayWidth(head), options.columns) + "\n";
  }
  return text +
         "entropy: of the router, nats; bits: what the expert of an assignment tells of its token, less what chance would\n";
}

// All of them, or the most loaded, in the order of their numbers.
std::vector<size_t> Listed(std::span<const int64_t> counts, bool all) {
  std::vector<size_t> experts(counts.size());
  std::iota(experts.begin(), experts.end(), size_t{0});
  if (all || experts.size() <= kMostListed) return experts;
  std::ranges::stable_sort(experts, [&](size_t a, size_t b) { return counts[a] > counts[b]; });
  experts.resize(kMostListed);
  std::ranges::sort(experts);
  return experts;
}

std::string Experts(const LayerRoutes& layer, bool all, const Tokenizer& tokenizer, const RouteTextOptions& options) {
  const MutualInformation& information = layer.information;
  const auto& counts = layer.load.tokens_per_expert;
  const auto total = static_cast<double>(std::max<int64_t>(1, Assignments(counts)));
  const double mean = total / static_cast<double>(counts.size());
  const auto most = static_cast<double>(std::max<int64_t>(1, *std::ranges::max_element(counts)));
  std::string text = fmt::format(
      "\nlayer {}: an expert tells {:.3f} bits of its token: {:.3f}, less {:.3f} of shuffled tokens; at most {:.3f}\n",
      layer.layer, information.excess_bits(), information.bits, information.shuffled_bits, information.expert_bits);
  for (const ExpertGroup& group : layer.groups)
    text += fmt::format("{}{}", &group == layer.groups.data() ? "experts: " : ", ", ToText(group));
  if (!layer.groups.empty()) text += ", in this order\n";
  const int bar = std::clamp(options.columns / 5, 8, 24);
  text += fmt::format("{:>6} {:>10} {:>6}  {:<{}}  tokens it takes so many times more often than others do\n", "expert",
                      "assigned", "/ mean", "", bar);
  const auto listed = Listed(counts, all);
  for (const size_t e : listed) {
    const auto n = static_cast<double>(counts[e]);
    std::string line =
        fmt::format("{:>6} {:>10} {:>6.2f}  {}  ", e, counts[e], n / mean, Padded(Bar(n / most, bar, options.plain), bar));
    bool any = false;
    for (const LikedToken& liked : layer.likes[e]) {
      const std::string item = fmt::format("{}\"{}\" {:.1f}", any ? "  " : "", tokenizer.TokenName(liked.id), liked.lift);
      if (any && DisplayWidth(line + item) > options.columns) break;
      line += item, any = true;
    }
    if (counts[e] == 0) line += "(dead)";
    line.resize(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  if (listed.size() < counts.size()) {
    text +=
        fmt::format("and {} experts with fewer tokens: --layer {} lists them\n", counts.size() - listed.size(), layer.layer);
  }
  return text;
}

std::string Policies(const RouteReport& report) {
  std::string text =
      fmt::format("\nwhat other policies would have done with the same logits, as {} does, in batches of {} tokens\n",
                  report.training ? "training" : "evaluation", report.step_rows);
  size_t width = 6;
  for (const PolicyRoutes& policy : report.policies) width = std::max(width, policy.policy.size());
  text += fmt::format("{:<{}}  {:>7} {:>8} {:>8}  {:>13}", "policy", width, "experts", "dropped", "padding", "max/mean, worst");
  const bool timed = report.timed_layer >= 0;
  for (const ExecutorName& executor : kExecutors) text += timed ? fmt::format("  {:>9}", executor.name) : "";
  text += "\n";
  std::vector<std::string> reasons;
  for (const PolicyRoutes& policy : report.policies) {
    text += fmt::format("{:<{}}  ", policy.policy, width);
    if (!policy.why.empty()) {
      text += "- " + policy.why + "\n";
      continue;
    }
    text += fmt::format("{:>7.2f} {:>6.2f} % {:>6.1f} %  {:>6.2f} {:>8.2f}",
                        policy.slots_per_token(report.evaluation.num_tokens), 100 * policy.drop_rate(),
                        100 * policy.padded_share(), 1 + policy.mean_violation(), 1 + policy.largest_violation());
    for (size_t i = 0; i < policy.times.size(); ++i) {
      const ExecutorTime& time = policy.times[i];
      text += fmt::format("  {:>{}}", time.why.empty() ? FormatSeconds(time.s.median) : "-",
                          std::max<size_t>(9, std::string_view(kExecutors[i].name).size()));
      const std::string reason = fmt::format("  {}: {}\n", kExecutors[i].name, time.why);
      if (!time.why.empty() && std::ranges::find(reasons, reason) == reasons.end()) reasons.push_back(reason);
    }
    text += "\n";
  }
  text += "experts: of a token; dropped: of assignments; padding: empty rows, if each expert's were padded to one size\n";
  if (timed) {
    text += fmt::format(
        "times: layer {} with {} tokens, selection and experts; medians of {} runs that took turns; {}, {} threads, {}\n",
        report.timed_layer, report.timed_rows, report.repetitions, report.isa, report.threads, Name(report.format));
  }
  for (const std::string& reason : reasons) text += reason;
  return text;
}

}  // namespace

std::string RouteText(const RouteReport& report, const Tokenizer& tokenizer, const RouteTextOptions& options) {
  RouteTextOptions shown = options;
  shown.columns = std::max(options.columns, kFewestColumns);
  const Evaluation& evaluation = report.evaluation;
  std::string text =
      fmt::format("{:<8} {}, {} of {} layers with experts\n", "model", report.model, report.layers.size(), report.num_layers);
  text += fmt::format("{:<8} {} in {} tokens, windows of {}\n", "text", FormatBytes(static_cast<double>(evaluation.num_bytes)),
                      FormatCount(static_cast<double>(evaluation.num_tokens)), report.context);
  text += fmt::format("{:<8} {:.4f} nats/token, {:.4f} bits/byte\n\n", "loss", evaluation.loss(), evaluation.bits_per_byte());
  text += Loads(report, shown);
  const bool asked = !shown.layers.empty();
  if (!asked) shown.layers = {report.most_telling_layer()};
  for (const int64_t layer : shown.layers) text += Experts(*report.Find(layer), asked, tokenizer, shown);
  return text + Policies(report);
}

}  // namespace moe
