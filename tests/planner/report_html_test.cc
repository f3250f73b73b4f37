#include "moe/planner/report_html.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "moe/planner/chart_js.h"
#include "testing/text.h"
#include "tests/planner/report_fixture.h"

namespace moe {
namespace {

using test::Count;

EconomicsReport Verified(double miss) {
  const Plan plan = test::PlanOfTiny();
  const SweepReport sweep = test::SweepOfPlan(plan, miss);
  const Verification v = Verify(sweep, plan.machine);
  return ReportOf(sweep, "tiny", &v, &plan.machine);
}

TEST(ReportHtml, OfAPlanHasItsFigures) {
  const Plan plan = test::PlanOfTiny();
  const EconomicsReport report = ReportOf(plan);
  EXPECT_TRUE(report.predicted());
  EXPECT_FALSE(report.measured());
  ASSERT_EQ(report.rows.size(), plan.rows.size());
  EXPECT_EQ(report.experts, 16);
  for (size_t r = 0; r < plan.rows.size(); ++r) {
    const ReportRow& row = report.rows[r];
    ASSERT_EQ(row.cells.size(), 3u);
    const ReportFigures& f = *row.cells[0].predicted;
    EXPECT_EQ(row.regime, Name(plan.rows[r].regime));
    EXPECT_EQ(f.tokens_per_s, plan.rows[r].model.tokens_per_s);
    EXPECT_NEAR(std::accumulate(f.part_s.begin(), f.part_s.end(), 0.0), f.s, 1e-9 * f.s);
    EXPECT_DOUBLE_EQ(row.cells[*report.Find(SweepRole::kDenseTotal)].predicted->s / f.s, plan.rows[r].speedup_total());
    EXPECT_DOUBLE_EQ(row.cells[*report.Find(SweepRole::kDenseActive)].predicted->s / f.s, plan.rows[r].speedup_active());
  }
}

// Bands cover the batches without a gap, meet where the speed-up passes 1.25, and are as many as the regimes.
TEST(ReportHtml, RegimesCoverTheBatches) {
  const Plan plan = test::PlanOfTiny();
  const EconomicsReport report = ReportOf(plan);
  ASSERT_GE(report.regimes.size(), 2u);
  EXPECT_EQ(report.regimes.front().from, 1);
  EXPECT_EQ(report.regimes.back().to, static_cast<double>(plan.rows.back().batch));
  for (size_t i = 1; i < report.regimes.size(); ++i) {
    EXPECT_EQ(report.regimes[i].from, report.regimes[i - 1].to);
    EXPECT_NE(report.regimes[i].name, report.regimes[i - 1].name);
    EXPECT_NE(report.regimes[i].color, report.regimes[i - 1].color);
  }
  ASSERT_FALSE(plan.crossover_total.empty());
  EXPECT_DOUBLE_EQ(report.regimes[1].from, plan.crossover_total.front());
}

TEST(ReportHtml, OfASweepHasBothBesideEachOther) {
  const EconomicsReport report = Verified(1.05);
  EXPECT_TRUE(report.predicted() && report.measured());
  for (const ReportRow& row : report.rows) {
    EXPECT_NE(row.regime, "");
    for (const ReportCell& cell : row.cells) {
      EXPECT_NEAR(cell.measured->s / cell.predicted->s, 1.05, 1e-9);
      EXPECT_NEAR(cell.measured->part_s[kPartWaiting], 0.1 * cell.measured->s, 1e-12);
      EXPECT_EQ(&cell.best(), &*cell.measured);
    }
  }
  const std::string html = ReportHtml(report);
  EXPECT_GT(Count(html, "-4.8 %"), 10u);  // 1 / 1.05
  for (const char* part : {"with the probe beside each measurement", "with the profile&#39;s own probe",
                           "equal total, predicted", "equal total, measured", "within 10.0 %", "repeats itself within 2.0 %"}) {
    EXPECT_NE(html.find(part), std::string::npos) << part;
  }
}

TEST(ReportHtml, NamesNoRegimeOfAPredictionThatMisses) {
  const EconomicsReport report = Verified(1.5);
  for (const ReportRow& row : report.rows) EXPECT_EQ(row.regime, "");
  ASSERT_EQ(report.regimes.size(), 1u);
  EXPECT_EQ(report.regimes[0].name, "not named");
  EXPECT_EQ(report.regimes[0].color, -1);
  EXPECT_NE(ReportHtml(report).find("no regime is named"), std::string::npos);
}

TEST(ReportHtml, OfASweepAlone) {
  const SweepReport sweep = test::SweepOfPlan(test::PlanOfTiny(), 1);
  const EconomicsReport report = ReportOf(sweep, "tiny", nullptr, nullptr);
  EXPECT_FALSE(report.predicted());
  EXPECT_TRUE(report.measured());
  EXPECT_GE(report.regimes.size(), 2u);
  ASSERT_EQ(report.boundaries.size(), 1u);
  EXPECT_EQ(report.boundaries[0].name, "B_sat");
  EXPECT_EQ(ReportHtml(report).find("predicted"), std::string::npos);
}

TEST(ReportHtml, ReadsWithoutScripts) {
  for (const EconomicsReport& report : {ReportOf(test::PlanOfTiny()), Verified(1.05)}) {
    const std::string html = ReportHtml(report);
    EXPECT_EQ(Count(html, "<canvas"), 5u);
    EXPECT_EQ(Count(html, "<svg"), 4u);  // all but the bars
    const std::string valley = ValleyChart(report);
    EXPECT_EQ(Count(valley, "<rect class=\"band\""), report.regimes.size());
    for (const ReportBoundary& b : report.boundaries) {
      const bool inside = b.batch <= static_cast<double>(report.rows.back().batch);
      EXPECT_EQ(Count(valley, ">" + b.name + "</text>"), inside ? 1u : 0u) << b.name;
    }
    EXPECT_EQ(Count(html, ">nan") + Count(html, ">inf") + Count(html, " nan") + Count(html, "\"nan"), 0u);
    // points of measured curves: two twins
    EXPECT_EQ(Count(valley, "<circle cx"), report.measured() ? 2 * report.rows.size() : 0u);
  }
}

TEST(ReportHtml, FetchesNothingAndEscapesNames) {
  const std::string evil = "</script><img src=x onerror=alert(1)>&\"";
  Plan plan = test::PlanOfTiny(evil);
  plan.machine.name = plan.machine.cpu = plan.machine.source = evil;
  const SweepReport sweep = [&] {
    SweepReport out = test::SweepOfPlan(plan, 1);
    out.cpu = out.isa = evil;
    return out;
  }();
  const Verification v = Verify(sweep, plan.machine);
  for (const EconomicsReport& report : {ReportOf(plan), ReportOf(sweep, evil, &v, &plan.machine)}) {
    std::string html = ReportHtml(report);
    EXPECT_EQ(html.find("<img"), std::string::npos);
    EXPECT_GE(Count(html, "&lt;/script&gt;&lt;img src=x"), 4u);
    const std::string chart_js(ChartJs());
    ASSERT_EQ(Count(html, chart_js), 1u);
    html.erase(html.find(chart_js), chart_js.size());
    for (const std::string_view before : {"src=", "href=", "url(", "import ", "import(", "fetch(", "=\"", "='", "('", "(\""}) {
      for (const std::string_view address : {"//", "http://", "https://", "'//", "\"//", "'http", "\"http"}) {
        EXPECT_EQ(html.find(fmt::format("{}{}", before, address)), std::string::npos) << before << address;
      }
    }
    for (const char* part : {"<link", "href=", "@import", "url(", "fetch(", "XMLHttp"})
      EXPECT_EQ(html.find(part), std::string::npos) << part;
  }
}

TEST(ReportHtml, OfADenseModelAndOfNothing) {
  const Plan dense = MakePlan("d", test::TinyDense(), BuiltInMachine("a100-80g").value(), {.context = 16}).value();
  const std::string html = ReportHtml(ReportOf(dense));
  EXPECT_EQ(Count(html, "<canvas"), 3u);  // neither valley nor experts
  EXPECT_EQ(html.find("The valley"), std::string::npos);
  SweepReport sweep = test::SweepOfPlan(test::PlanOfTiny(), 1);
  sweep.rows.resize(1);
  EXPECT_EQ(Count(ReportHtml(ReportOf(sweep, "tiny", nullptr, nullptr)), "<canvas"), 5u);
  sweep.rows.clear();
  EXPECT_NE(ReportHtml(ReportOf(sweep, "tiny", nullptr, nullptr)).find("Stopped before the first batch"), std::string::npos);
}

}  // namespace
}  // namespace moe
