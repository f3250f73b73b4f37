#pragma once
// The page of moe plan and moe sweep: one offline HTML file about batch sizes, of figures that were predicted, measured, or
// both.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "moe/planner/html_page.h"
#include "moe/planner/plan.h"
#include "moe/planner/sweep.h"
#include "moe/planner/verify.h"

namespace moe {

// Step parts of StepPart, then what predictions and the sweep tell besides.
enum ReportPart : uint8_t { kPartWaiting = kNumStepParts, kPartSync, kPartLink };
inline constexpr int kNumReportParts = kNumStepParts + 3;
std::string_view NameOfReportPart(int part);  // "attention" ... "imbalance, waiting", "begin and end", "exchange"

// Of one model's step at one batch.
struct ReportFigures {
  double s = 0, tokens_per_s = 0;
  std::array<double, kNumReportParts> part_s{};  // sums up to about s
  double distinct_experts = 0;                   // mean over MoE layers; 0 without any
  double bytes = 0, flop = 0;
};

struct ReportCell {
  std::optional<ReportFigures> predicted, measured;
  std::string bound;  // "memory", "compute", ...; empty: unknown
  // The measured figures where there are any.
  const ReportFigures& best() const { return measured ? *measured : *predicted; }
};

struct ReportRow {
  int64_t batch = 0;
  std::vector<ReportCell> cells;  // as the models
  std::string regime;             // "": not named
};

struct ReportModel {
  SweepRole role = SweepRole::kModel;
  std::string name, what;  // "equal total"; its size and shape
};

// A closed form.
struct ReportBoundary {
  std::string name, meaning;
  double batch = 0;
};

// What the page shows, whoever found it out.
struct EconomicsReport {
  std::string title;
  std::vector<std::string> advice, lead;  // plain words; what the step is
  std::vector<ReportModel> models;        // the model, then its twins
  std::vector<ReportRow> rows;            // by batch, ascending
  std::vector<ChartBand> regimes;         // over the batches
  std::vector<ReportBoundary> boundaries;
  int64_t experts = 0;  // of a layer; 0: a dense model
  // Of the roofline; 0: unknown. cache: weights from the caches.
  double memory_bytes_per_s = 0, cache_bytes_per_s = 0, peak_flop_per_s = 0;
  std::vector<HtmlTable> tables;  // besides those of all rows: memory, errors
  std::vector<std::string> how;   // sentences

  std::optional<size_t> Find(SweepRole role) const;  // index into models
  bool predicted() const { return !rows.empty() && rows.front().cells.front().predicted.has_value(); }
  bool measured() const { return !rows.empty() && rows.front().cells.front().measured.has_value(); }
};

EconomicsReport ReportOf(const Plan& plan);
// verification and machine: both or neither. `name`: what the model was called.
EconomicsReport ReportOf(const SweepReport& sweep, const std::string& name, const Verification* verification,
                         const MachineProfile* machine);

// The whole file.
std::string ReportHtml(const EconomicsReport& report);

// Its charts, with their SVG where they are lines; empty where there is nothing to draw.
std::string ValleyChart(const EconomicsReport& report);
std::string ThroughputChart(const EconomicsReport& report);
std::string PartsChart(const EconomicsReport& report);
std::string DistinctChart(const EconomicsReport& report);
std::string RooflineChart(const EconomicsReport& report);

}  // namespace moe
