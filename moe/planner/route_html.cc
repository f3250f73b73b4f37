// The routes of a model as a page: heat map, experts, policies.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "moe/base/progress.h"
#include "moe/mixture/moe_metrics.h"
#include "moe/planner/html_page.h"
#include "moe/planner/route_report.h"

namespace moe {
namespace {

constexpr double kDrawing = 1000, kLeft = 52, kTop = 20, kRow = 22;  // units of the heat map's SVG
constexpr double kStrongest = 2;    // loads this many doublings off the mean have the full colour
constexpr double kWithNumber = 24;  // a cell this wide says its load

constexpr const char* kStyle = R"(<style>
:root { --more: #e8590c; --less: #3b82f6; }
svg.heat { width: 100%; height: auto; display: block; } svg.heat text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg.heat rect { stroke: var(--back); stroke-width: 1; } svg.heat text.number { fill: var(--text);
  font-size: 9px; pointer-events: none; }
svg.heat .more { fill: var(--more); } svg.heat .less { fill: var(--less); }
svg.heat .dead { fill: none; stroke: var(--soft); stroke-dasharray: 2 2; }
.legend { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; font-size: 0.85rem; color: var(--soft); margin: 0.5rem 0; }
.legend i { display: inline-block; width: 1.4rem; height: 0.8rem; margin-right: 0.4rem; border: 1px solid var(--line); }
.legend i.gone { border: 1px dashed var(--soft); }
.load { display: inline-block; height: 0.7rem; background: var(--less); vertical-align: middle; border-radius: 1px; }
.likes { white-space: normal; min-width: 24rem; }
.likes span { display: inline-block; margin-right: 0.8rem; } .likes code { background: var(--panel); padding: 0 0.25rem;
  border-radius: 3px; white-space: pre; } .likes small { color: var(--soft); }
details.layer { color: inherit; font-size: 1rem; margin-top: 0.6rem; } details.layer summary { cursor: pointer; }
</style>
)";

std::string Percent(double share) {
  return fmt::format("{:.2f} %", 100 * share);
}

// How far a load is off the mean: -1..1, by doublings.
double Strength(double load) {
  return std::clamp(std::log2(std::max(load, 1e-9)) / kStrongest, -1.0, 1.0);
}

std::string Cell(double x, double y, double width, int64_t count, double load, std::string_view title) {
  const double strength = Strength(load);
  const char* kind = count == 0 ? "dead" : strength >= 0 ? "more" : "less";
  std::string out = fmt::format(
      "<rect class=\"{}\" x=\"{:.2f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{:.1f}\" "
      "fill-opacity=\"{:.2f}\"><title>{}</title></rect>\n",
      kind, x, y, width, kRow, count == 0 ? 0 : std::max(0.04, std::fabs(strength)), HtmlEscape(title));
  if (width >= kWithNumber) {
    out += fmt::format("<text class=\"number\" x=\"{:.2f}\" y=\"{:.1f}\" text-anchor=\"middle\">{:.2f}</text>\n", x + width / 2,
                       y + kRow / 2 + 3.5, load);
  }
  return out;
}

std::string HeatMap(const RouteReport& report) {
  size_t most = 1;
  for (const LayerRoutes& layer : report.layers) most = std::max(most, layer.load.tokens_per_expert.size());
  const double cell = std::min(40.0, (kDrawing - kLeft) / static_cast<double>(most));
  const double height = kTop + kRow * static_cast<double>(report.layers.size()) + 2;
  std::string out = fmt::format(
      "<figure>\n<figcaption>Load of every expert, layer by layer</figcaption>\n<svg class=\"heat\" viewBox=\"0 0 {:.0f} "
      "{:.0f}\" "
      "style=\"max-width: {:.0f}px\" role=\"img\" aria-label=\"heat map of expert loads; the numbers are in the tables "
      "below\">\n",
      kLeft + cell * static_cast<double>(most) + 2, height, std::max(360.0, 1.15 * (kLeft + cell * static_cast<double>(most))));
  const size_t every = most <= 16 ? 1 : most <= 64 ? 8 : most <= 256 ? 16 : most / 16;
  for (size_t e = 0; e < most; e += every) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.0f}\" text-anchor=\"middle\">{}</text>\n",
                       kLeft + cell * (static_cast<double>(e) + 0.5), kTop - 6, e);
  }
  for (size_t i = 0; i < report.layers.size(); ++i) {
    const LayerRoutes& layer = report.layers[i];
    const auto& counts = layer.load.tokens_per_expert;
    const double y = kTop + kRow * static_cast<double>(i);
    const double mean = static_cast<double>(Assignments(counts)) / static_cast<double>(counts.size());
    out += fmt::format("<text x=\"{:.0f}\" y=\"{:.1f}\" text-anchor=\"end\">layer {}</text>\n", kLeft - 6, y + kRow / 2 + 4,
                       layer.layer);
    for (size_t e = 0; e < counts.size(); ++e) {
      const double load = mean == 0 ? 0 : static_cast<double>(counts[e]) / mean;
      out += Cell(kLeft + cell * static_cast<double>(e), y, cell, counts[e], load,
                  fmt::format("layer {}, expert {}: {} assignments, {:.2f} of the mean", layer.layer, e, counts[e], load));
    }
  }
  out += "</svg>\n<div class=\"legend\">";
  for (const double load : {0.25, 0.5, 0.75, 1.0, 1.33, 2.0, 4.0}) {
    const double strength = Strength(load);
    out += fmt::format("<span><i style=\"background: color-mix(in srgb, var({}) {:.0f}%, transparent)\"></i>{}{:g}</span>",
                       strength >= 0 ? "--more" : "--less", 100 * std::max(0.04, std::fabs(strength)),
                       std::fabs(strength) == 1 ? (load < 1 ? "≤ " : "≥ ") : "", load);
  }
  return out +
         "<span><i class=\"gone\"></i>no token at all</span><span>load / mean load of the layer</span></div>\n</figure>\n";
}

std::string LayerTable(const RouteReport& report) {
  HtmlTable table{.caption = "Layers",
                  .head = {"layer", "experts", "top-k", "max / mean", "CV", "dropped", "router entropy", "dead", "mean gate",
                           "largest |logit|", "expert tells", "of at most"}};
  for (const LayerRoutes& layer : report.layers) {
    const ExpertLoad& load = layer.load;
    table.rows.push_back({std::to_string(layer.layer), std::to_string(layer.router.num_experts),
                          std::to_string(layer.router.top_k), fmt::format("{:.2f}", 1 + load.max_violation),
                          fmt::format("{:.2f}", load.coefficient_of_variation), Percent(load.drop_rate),
                          fmt::format("{:.3f} nats", load.entropy), std::to_string(load.dead_experts),
                          fmt::format("{:.3f}", load.gate_mean), fmt::format("{:.2f}", load.largest_logit),
                          fmt::format("{:.3f} bits", layer.information.excess_bits()),
                          fmt::format("{:.2f} bits", layer.information.expert_bits)});
  }
  return HtmlTableOf(table);
}

std::string ExpertTable(const LayerRoutes& layer, bool open, const Tokenizer& tokenizer) {
  const auto& counts = layer.load.tokens_per_expert;
  const auto most = static_cast<double>(std::max<int64_t>(1, *std::ranges::max_element(counts)));
  const double mean = static_cast<double>(std::max<int64_t>(1, Assignments(counts))) / static_cast<double>(counts.size());
  std::string out = fmt::format(
      "<details class=\"layer\"{}><summary>layer {}: max / mean {:.2f}, {:.3f} bits</summary>\n<div class=\"wide\"><table>\n"
      "<thead><tr><th>expert</th><th>assignments</th><th>/ mean</th><th class=\"word\">load</th>"
      "<th class=\"word\">tokens it takes more often than others do, and how many times</th></tr></thead>\n<tbody>\n",
      open ? " open" : "", layer.layer, 1 + layer.load.max_violation, layer.information.excess_bits());
  for (size_t e = 0; e < counts.size(); ++e) {
    const auto n = static_cast<double>(counts[e]);
    out += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{:.2f}</td><td class=\"word\"><span class=\"load\" style=\"width: "
        "{:.2f}rem\"></span></td>"
        "<td class=\"word likes\">",
        e, counts[e], n / mean, 6 * n / most);
    for (const LikedToken& liked : layer.likes[e]) {
      out += fmt::format("<span title=\"{} times\"><code>{}</code> <small>{:.1f}</small></span>", liked.count,
                         HtmlEscape(tokenizer.TokenName(liked.id)), liked.lift);
    }
    out += counts[e] == 0 ? "<small>dead</small></td></tr>\n" : "</td></tr>\n";
  }
  return out + "</tbody>\n</table></div></details>\n";
}

std::string PolicyTable(const RouteReport& report) {
  const bool timed = report.timed_layer >= 0;
  HtmlTable table{.head = {"policy", "experts", "dropped", "padding", "max / mean", "worst"}};
  for (const ExecutorName& executor : kExecutors) {
    if (timed) table.head.emplace_back(executor.name);
  }
  std::vector<std::string> notes;
  for (const PolicyRoutes& policy : report.policies) {
    std::vector<std::string> row = {policy.policy};
    if (!policy.why.empty()) {
      row.resize(table.head.size(), "-");
      notes.push_back(policy.policy + ": " + policy.why);
    } else {
      for (std::string cell :
           {fmt::format("{:.2f}", policy.slots_per_token(report.evaluation.num_tokens)), Percent(policy.drop_rate()),
            fmt::format("{:.1f} %", 100 * policy.padded_share()), fmt::format("{:.2f}", 1 + policy.mean_violation()),
            fmt::format("{:.2f}", 1 + policy.largest_violation())}) {
        row.push_back(std::move(cell));
      }
      for (size_t i = 0; timed && i < std::size(kExecutors); ++i) {
        const ExecutorTime time = policy.times.empty() ? ExecutorTime{.why = "not measured"} : policy.times[i];
        row.push_back(time.why.empty() ? FormatSeconds(time.s.median) : "-");
        const std::string note = fmt::format("{}: {}", kExecutors[i].name, time.why);
        if (!time.why.empty() && std::ranges::find(notes, note) == notes.end()) notes.push_back(note);
      }
    }
    table.rows.push_back(std::move(row));
  }
  std::string out = HtmlTableOf(table);
  for (const std::string& note : notes) out += HtmlParagraph(note);
  return out;
}

std::string HowMeasured(const RouteReport& report) {
  std::string text = fmt::format(
      "The text was read as moe eval reads it: windows of {} tokens that begin with BOS and do not overlap; experts see the "
      "token "
      "of their row. Loads count assignments before dropping. Lift is p(token | expert) / p(token) over assignments, of tokens "
      "that "
      "an expert took {} times or more. What an expert tells of its token is their mutual information, less what is measured "
      "when "
      "the tokens are shuffled among the rows, which counts alone would give. Policies were replayed on the model's own logits "
      "in batches of {} tokens as {} routes, with a selection bias only where the policy has one; jitter, which is of a "
      "router's "
      "input, is not in it. Experts are those of a token; padding is the share of empty rows if all experts' rows were padded "
      "to "
      "one size; max / mean is the mean over layers, worst that of the layer where it is largest.",
      report.context, report.least_count, report.step_rows, report.training ? "training" : "evaluation");
  if (report.timed_layer >= 0) {
    text += fmt::format(
        " Times are of layer {} in inference with {} tokens and the policy's routing: the router's product, selection and all "
        "experts with the model's own weights; medians of {} runs that took turns, after one that did not count.",
        report.timed_layer, report.timed_rows, report.repetitions);
  }
  return text + fmt::format(" {}, {}, {} threads, {}.", report.cpu, report.isa, report.threads, Name(report.format));
}

}  // namespace

std::string RouteHtml(const RouteReport& report, const Tokenizer& tokenizer) {
  const Evaluation& evaluation = report.evaluation;
  std::string body = kStyle;
  body += HtmlParagraph(fmt::format(
      "{} of text in {} tokens; loss {:.4f} nats/token, {:.4f} bits/byte; {} of {} layers have experts.",
      FormatBytes(static_cast<double>(evaluation.num_bytes)), FormatCount(static_cast<double>(evaluation.num_tokens)),
      evaluation.loss(), evaluation.bits_per_byte(), report.layers.size(), report.num_layers));
  body += HeatMap(report);
  body += LayerTable(report);
  body += HtmlHeading("What each expert likes");
  for (const LayerRoutes& layer : report.layers)
    body += ExpertTable(layer, layer.layer == report.most_telling_layer(), tokenizer);
  body += HtmlHeading("What other policies would have done with the same logits");
  body += PolicyTable(report);
  body += HtmlHeading("How this was measured");
  body += HtmlParagraph(HowMeasured(report));
  return HtmlPage("Routes of " + report.model, body);
}

}  // namespace moe
