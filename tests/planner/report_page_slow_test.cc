// Reports in a real browser: slow only because not every machine has one.

#include "testing/browser.h"
#include "tests/planner/compare_fixture.h"

namespace moe::test {
namespace {

TEST_F(CompareTest, ThePageIsDrawnWithoutAnError) {
  const auto report = Compare(Options("c"));
  ASSERT_TRUE(report) << report.error().Message();
  WriteFile(dir_ / "report.html", CompareHtml(*report));
  const auto shown = ShowPage(dir_ / "report.html", kCountInk);
  if (!shown) GTEST_SKIP() << "no chromium here";
  EXPECT_EQ(shown->console, "");
  size_t charts = 0;
  for (size_t at = shown->dom.find("<canvas"); at != std::string::npos; at = shown->dom.find("<canvas", at + 1)) ++charts;
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

TEST(ReportPage, ErrorsWouldBeSeen) {
  const TempDir dir;
  WriteFile(dir / "page.html", HtmlPage("t", HtmlChart("t", "no configuration", "")));
  const auto shown = ShowPage(dir / "page.html", "throw new Error('seen');");
  if (!shown) GTEST_SKIP() << "no chromium here";
  EXPECT_NE(shown->console.find("seen"), std::string::npos);
}

}  // namespace
}  // namespace moe::test
