#include "moe/planner/report_html.h"

#include <fmt/format.h>

#include <algorithm>

#include "moe/base/progress.h"

namespace moe {
namespace {

std::string Signed(double predicted, double measured) {
  return fmt::format("{:+.1f} %", 100 * (predicted / measured - 1));
}

std::string BatchText(double batch) {
  return batch < 100 ? fmt::format("{:.3g}", batch) : fmt::format("{:.0f}", batch);
}

HtmlTable ModelTable(const EconomicsReport& report) {
  HtmlTable table{.head = {"model", "what it is"}, .text_columns = 2};
  for (const ReportModel& model : report.models) table.rows.push_back({model.name, model.what});
  return table;
}

HtmlTable BoundaryTable(const EconomicsReport& report) {
  HtmlTable table{.caption = "Boundaries, closed forms", .head = {"", "what it is", "batch"}, .text_columns = 2};
  for (const ReportBoundary& b : report.boundaries) table.rows.push_back({b.name, b.meaning, BatchText(b.batch)});
  return table;
}

HtmlTable SpeedUpTable(const EconomicsReport& report) {
  const bool both = report.predicted() && report.measured();
  HtmlTable table{.caption = "Speed-up of the MoE", .head = {"batch"}};
  for (size_t i = 1; i < report.models.size(); ++i) {
    const std::string over = "over " + report.models[i].name;
    if (both) table.head.push_back(over + ", predicted");
    table.head.push_back(both ? over + ", measured" : over);
  }
  table.head.emplace_back("regime");
  if (report.experts > 0) table.head.emplace_back("distinct experts");
  for (const ReportRow& row : report.rows) {
    std::vector<std::string> cells = {std::to_string(row.batch)};
    const ReportCell& model = row.cells.front();
    for (size_t i = 1; i < row.cells.size(); ++i) {
      if (both) cells.push_back(fmt::format("{:.2f}", row.cells[i].predicted->s / model.predicted->s));
      cells.push_back(fmt::format("{:.2f}", row.cells[i].best().s / model.best().s));
    }
    cells.push_back(row.regime.empty() ? "not named" : row.regime);
    if (report.experts > 0) cells.push_back(fmt::format("{:.1f} of {}", model.best().distinct_experts, report.experts));
    table.rows.push_back(std::move(cells));
  }
  return table;
}

// Of every model at every batch.
HtmlTable StepTable(const EconomicsReport& report) {
  const bool both = report.predicted() && report.measured();
  HtmlTable table{.caption = "Steps of all models", .head = {"model", "batch"}};
  if (report.measured()) table.head.emplace_back("measured");
  if (report.predicted()) table.head.emplace_back("predicted");
  if (both) table.head.emplace_back("off by");
  for (const char* name : {"tokens/s", "bytes", "FLOP", "B/s", "FLOP/s", "FLOP/B"}) table.head.emplace_back(name);
  if (report.predicted()) table.head.emplace_back("bound by");
  for (size_t i = 0; i < report.models.size(); ++i) {
    for (const ReportRow& row : report.rows) {
      const ReportCell& cell = row.cells[i];
      const ReportFigures& f = cell.best();
      std::vector<std::string> cells = {report.models[i].name, std::to_string(row.batch)};
      if (cell.measured) cells.push_back(FormatSeconds(cell.measured->s));
      if (cell.predicted) cells.push_back(FormatSeconds(cell.predicted->s));
      if (both) cells.push_back(Signed(cell.predicted->s, cell.measured->s));
      for (std::string text :
           {FormatCount(f.tokens_per_s), FormatBytes(f.bytes), FormatCount(f.flop), FormatRate(f.bytes / f.s, "B"),
            FormatRate(f.flop / f.s, "FLOP"), fmt::format("{:.3g}", f.flop / f.bytes)}) {
        cells.push_back(std::move(text));
      }
      if (report.predicted()) cells.push_back(cell.bound);
      table.rows.push_back(std::move(cells));
    }
  }
  return table;
}

// Of the model itself.
HtmlTable PartsTable(const EconomicsReport& report) {
  const bool both = report.predicted() && report.measured();
  HtmlTable table{
      .caption = fmt::format("Where the time of {} goes, % of the {}step", report.models.front().name, both ? "measured " : ""),
      .head = {"batch"}};
  if (both) table.head.emplace_back(""), table.text_columns = 2;
  std::vector<size_t> shown;
  for (size_t p = 0; p < kNumReportParts; ++p) {
    const bool any = std::ranges::any_of(report.rows, [&](const ReportRow& row) {
      const ReportCell& cell = row.cells.front();
      return (cell.predicted && cell.predicted->part_s[p] > 0) || (cell.measured && cell.measured->part_s[p] > 0);
    });
    if (!any) continue;
    shown.push_back(p), table.head.emplace_back(NameOfReportPart(static_cast<int>(p)));
  }
  for (const ReportRow& row : report.rows) {
    const ReportCell& cell = row.cells.front();
    for (const bool measured : {true, false}) {
      const auto& figures = measured ? cell.measured : cell.predicted;
      if (!figures) continue;
      std::vector<std::string> cells = {std::to_string(row.batch)};
      if (both) cells.emplace_back(measured ? "measured" : "predicted");
      for (const size_t p : shown) cells.push_back(fmt::format("{:.1f}", 100 * figures->part_s[p] / cell.best().s));
      table.rows.push_back(std::move(cells));
    }
  }
  return table;
}

std::string Advice(const EconomicsReport& report) {
  std::string out = "<ul>\n";
  for (const std::string& line : report.advice) out += fmt::format("<li>{}</li>\n", HtmlEscape(line));
  return report.advice.empty() ? "" : out + "</ul>\n";
}

// What shades and marks mean, and the marks that lie outside.
std::string ValleyNote(const EconomicsReport& report) {
  std::string text =
      "Speed-up is the dense model's time over the MoE's. Memory: both wait for memory, and the MoE reads less. Middle: nearly "
      "every "
      "expert is read, little is gained. Compute: arithmetic binds, and the MoE does less of it.";
  for (const ReportBoundary& b : report.boundaries) {
    text += fmt::format(" {} = {}{}.", b.name, BatchText(b.batch),
                        b.batch > static_cast<double>(report.rows.back().batch)    ? ", beyond these batches"
                        : b.batch < static_cast<double>(report.rows.front().batch) ? ", before these batches"
                                                                                   : "");
  }
  if (std::ranges::any_of(report.regimes, [](const ChartBand& band) { return band.name == "not named"; })) {
    text += " Where the prediction misses too much, no regime is named.";
  }
  return HtmlParagraph(text);
}

std::string PartsNote(const EconomicsReport& report) {
  if (!report.measured()) {
    return HtmlParagraph(
        "Imbalance: experts have more and fewer rows than their mean. Begin and end: starting and ending parallel work, and "
        "the step "
        "itself.");
  }
  return HtmlParagraph(
      "Waiting, of measured times: threads that waited for others; what it costs to begin and end parallel work is in it or in "
      "the "
      "parts. Predictions tell imbalance from beginning and ending.");
}

}  // namespace

std::string ReportHtml(const EconomicsReport& report) {
  std::string body;
  for (const std::string& line : report.lead) body += HtmlParagraph(line);
  if (report.rows.empty()) {
    body += HtmlParagraph("Stopped before the first batch was measured.") + HtmlTableOf(ModelTable(report));
    return HtmlPage(report.title, body);
  }
  body += Advice(report);
  const std::string valley = ValleyChart(report);
  if (!valley.empty()) body += HtmlHeading("The valley") + valley + ValleyNote(report);
  if (!report.boundaries.empty()) body += HtmlTableOf(BoundaryTable(report));
  body += HtmlHeading("Throughput and latency") + ThroughputChart(report);
  body += HtmlHeading("Where the time goes") + PartsChart(report) + PartsNote(report);
  const std::string distinct = DistinctChart(report);
  if (!distinct.empty()) body += HtmlHeading("Distinct experts") + distinct;
  const std::string roofline = RooflineChart(report);
  if (!roofline.empty()) {
    body += HtmlHeading("Roofline") + roofline +
            HtmlParagraph(
                "Bytes are weights and cached keys and values, each once. Points above the roof of memory read from caches.");
  }
  body += HtmlHeading("All numbers") + HtmlTableOf(ModelTable(report));
  if (report.models.size() > 1) body += HtmlTableOf(SpeedUpTable(report));
  body += HtmlTableOf(StepTable(report)) + HtmlTableOf(PartsTable(report));
  for (const HtmlTable& table : report.tables) body += HtmlTableOf(table);
  body += HtmlHeading(report.measured() ? "How it was measured" : "What it rests on");
  for (const std::string& sentence : report.how) body += HtmlParagraph(sentence);
  return HtmlPage(report.title, body);
}

}  // namespace moe
