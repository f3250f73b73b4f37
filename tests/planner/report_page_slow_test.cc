// Reports in a real browser: slow only because not every machine has one.

#include "testing/browser.h"
#include "testing/text.h"
#include "tests/planner/compare_fixture.h"
#include "tests/planner/report_fixture.h"

namespace moe::test {
namespace {

TEST_F(CompareTest, ThePageIsDrawnWithoutAnError) {
  const auto report = Compare(Options("c"));
  ASSERT_TRUE(report) << report.error().Message();
  WriteFile(dir_ / "report.html", CompareHtml(*report));
  const auto shown = ShowPage(dir_ / "report.html", kCountInk);
  if (!shown) GTEST_SKIP() << "no chromium here";
  EXPECT_EQ(shown->console, "");
  const size_t charts = Count(shown->dom, "<canvas");
  EXPECT_GE(charts, 5u);
  EXPECT_NE(shown->dom.find(fmt::format("data-charts=\"{}\"", charts)), std::string::npos) << shown->dom.substr(0, 300);
  EXPECT_NE(shown->dom.find(fmt::format("data-inked=\"{}\"", charts)), std::string::npos) << shown->dom.substr(0, 300);
}

TEST(ReportPage, TooltipsNameThePoint) {
  const TempDir dir;
  const ChartOfLines chart{
      .title = "t", .x_title = "x", .y_title = "y", .series = {{.name = "line of mine", .points = {{0, 1}, {1, 2}, {2, 4}}}}};
  WriteFile(dir / "page.html", HtmlPage("t", HtmlLineChart(chart)));
  const auto shown = ShowPage(dir / "page.html", R"(
    const chart = Chart.getChart(document.querySelector('canvas')), point = chart.getDatasetMeta(0).data[1];
    const box = chart.canvas.getBoundingClientRect();
    chart.canvas.dispatchEvent(new MouseEvent('mousemove', {clientX: box.left + point.x, clientY: box.top + point.y, bubbles: true}));
    requestAnimationFrame(() => {
      document.documentElement.dataset.tooltip = chart.tooltip.opacity + ' ' + chart.tooltip.body.map(b => b.lines.join()).join();
    });)");
  if (!shown) GTEST_SKIP() << "no chromium here";
  EXPECT_EQ(shown->console, "");
  EXPECT_NE(shown->dom.find("data-tooltip=\"1 line of mine: 2\""), std::string::npos) << shown->dom.substr(0, 300);
}

TEST(ReportPage, OfAVerifiedSweepIsDrawnWithLabelsAndTooltips) {
  const TempDir dir;
  const Plan plan = PlanOfTiny();
  const SweepReport sweep = SweepOfPlan(plan, 1.05);
  const Verification v = Verify(sweep, plan.machine);
  WriteFile(dir / "page.html", ReportHtml(ReportOf(sweep, "tiny", &v, &plan.machine)));
  const auto shown = ShowPage(dir / "page.html", std::string(kCountInk) + R"(
    const canvases = [...document.querySelectorAll('canvas')], tips = [];
    for (const canvas of canvases) {
      const chart = Chart.getChart(canvas), bars = chart.config.type == 'bar', box = canvas.getBoundingClientRect();
      const of = bars ? chart.data.datasets.findIndex(d => d.label.startsWith('experts')) : 0;  // others are too flat to point at
      const point = chart.getDatasetMeta(of).data[2];
      const at = {clientX: box.left + point.x, clientY: box.top + point.y + (bars ? 3 : 0), bubbles: true};
      canvas.dispatchEvent(new MouseEvent('mousemove', at));
    }
    requestAnimationFrame(() => {
      for (const canvas of canvases) {
        const {tooltip} = Chart.getChart(canvas);
        tips.push(tooltip.opacity + ' ' + tooltip.title.join() + ' ' + tooltip.body.map(b => b.lines.join()).join());
      }
      document.documentElement.dataset.tips = tips.join('; ');
    });)");
  if (!shown) GTEST_SKIP() << "no chromium here";
  EXPECT_EQ(shown->console, "");
  const std::string start = shown->dom.substr(0, 800);
  EXPECT_NE(shown->dom.find("data-charts=\"5\""), std::string::npos) << start;
  EXPECT_NE(shown->dom.find("data-inked=\"5\""), std::string::npos) << start;
  for (const char* part : {"1 batch 4 equal total, predicted: ", "1 batch 4 MoE, ", "; 1 4 ", "1 batch 4 experts, "}) {
    EXPECT_NE(shown->dom.find(part), std::string::npos) << part << "\n" << start;
  }
}

// As where scripts are off: those of the page do nothing.
TEST(ReportPage, WithoutScriptsTheSvgIsSeen) {
  const TempDir dir;
  std::string html = ReportHtml(ReportOf(PlanOfTiny()));
  for (size_t at = html.find("<script>"); at != std::string::npos; at = html.find("<script>", at)) {
    html.replace(at, 8, "<script type=\"text/plain\">");
  }
  WriteFile(dir / "page.html", html);
  const auto shown = ShowPage(dir / "page.html", R"(
    const seen = what => [...document.querySelectorAll(what)].filter(x => x.getBoundingClientRect().height > 100).length;
    document.documentElement.dataset.seen = seen('svg') + ' ' + seen('canvas') + ' ' + seen('table');)");
  if (!shown) GTEST_SKIP() << "no chromium here";
  EXPECT_EQ(shown->console, "");
  EXPECT_NE(shown->dom.find("data-seen=\"4 0 "), std::string::npos) << shown->dom.substr(0, 300);
}

TEST(ReportPage, ErrorsWouldBeSeen) {
  const TempDir dir;
  WriteFile(dir / "page.html", HtmlPage("t", HtmlChart("t", "no configuration", "")));
  const auto shown = ShowPage(dir / "page.html", "throw new Error('seen');");
  if (!shown) GTEST_SKIP() << "no chromium here";
  EXPECT_NE(shown->console.find("seen"), std::string::npos);
}

}  // namespace
}  // namespace moe::test
