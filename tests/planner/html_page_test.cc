#include "moe/planner/html_page.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "moe/planner/chart_js.h"
#include "testing/text.h"

namespace moe {
namespace {

using test::Count;

// What stands in the first <script type="application/json">, as a browser would hand it out.
nlohmann::json ConfigIn(const std::string& html) {
  const std::string open = "<script type=\"application/json\">";
  const size_t begin = html.find(open) + open.size(), end = html.find("</script>", begin);
  return nlohmann::json::parse(html.substr(begin, end - begin));
}

ChartOfLines TwoLines() {
  return {.title = "Loss <of> all",
          .x_title = "tokens",
          .y_title = "loss",
          .series = {{.name = "a & b", .points = {{0, 4}, {10, 2}, {20, NAN}, {30, 1}}},
                     {.name = "</script>", .points = {{5, 3}}, .line = false, .dashed = true}}};
}

TEST(HtmlPage, TextIsEscapedWhereverItGoes) {
  EXPECT_EQ(HtmlEscape("a<b> & \"c\" 'd'\n"), "a&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39;\n");
  EXPECT_EQ(HtmlEscape("\xc3\xa9\xff!"), "\xc3\xa9\xef\xbf\xbd!");
  EXPECT_EQ(HtmlHeading("<"), "<h2>&lt;</h2>\n");
  EXPECT_EQ(HtmlParagraph("<"), "<p>&lt;</p>\n");
  const std::string table = HtmlTableOf({.caption = "<1", .head = {"<2", "<3"}, .rows = {{"<4", "<5"}, {"<6"}}});
  EXPECT_EQ(Count(table, "&lt;"), 6u);
  EXPECT_NE(table.find("<td class=\"word\">&lt;4</td><td>&lt;5</td>"), std::string::npos) << table;
  EXPECT_NE(table.find("colspan=\"2\">&lt;6</td>"), std::string::npos) << table;
  EXPECT_NE(HtmlPage("<title", "").find("<title>&lt;title</title>"), std::string::npos);
}

TEST(HtmlPage, ChartJsAndItsLicenceComeWithChartsOnly) {
  EXPECT_TRUE(ChartJs().starts_with("/*!\n * Chart.js v3"));
  EXPECT_EQ(ChartJs().find("</script"), std::string_view::npos);
  const std::string plain = HtmlPage("t", HtmlParagraph("p"));
  EXPECT_EQ(plain.find("Chart"), std::string::npos);
  const std::string page = HtmlPage("t", HtmlLineChart(TwoLines()) + HtmlLineChart(TwoLines()));
  EXPECT_EQ(Count(page, std::string(ChartJs())), 1u);
  EXPECT_EQ(Count(page, "Permission is hereby granted, free of charge"), 1u);
  EXPECT_EQ(Count(page, "<canvas"), 2u);
  // nothing is fetched: the only addresses are words
  for (const char* part : {"src=", "href=", "url(", "@import"})
    EXPECT_EQ(Count(page, part), Count(std::string(ChartJs()), part)) << part;
}

TEST(HtmlPage, AChartsConfigurationComesBackAndEndsNoScript) {
  const nlohmann::json config = {{"type", "bar"}, {"text", "</script><b>"}};
  const std::string html = HtmlChart("a <chart>", config, "<p>none</p>");
  EXPECT_EQ(ConfigIn(html), config);
  EXPECT_EQ(Count(html, "</script>"), 1u);
  EXPECT_NE(html.find("<div class=\"fallback\"><p>none</p></div>"), std::string::npos);
  EXPECT_NE(html.find("<figcaption>a &lt;chart&gt;</figcaption>"), std::string::npos);
}

TEST(HtmlPage, ALineChartKeepsWhatCanBeDrawn) {
  const nlohmann::json config = LineChartConfig(TwoLines());
  const auto& sets = config["data"]["datasets"];
  ASSERT_EQ(sets.size(), 2u);
  EXPECT_EQ(sets[0]["label"], "a & b");
  EXPECT_EQ(sets[0]["data"].dump(), R"([{"x":0.0,"y":4.0},{"x":10.0,"y":2.0},{"x":30.0,"y":1.0}])");
  EXPECT_EQ(sets[0]["showLine"], true);
  EXPECT_EQ(sets[1]["showLine"], false);
  EXPECT_EQ(sets[1]["borderDash"].dump(), "[6,4]");
  EXPECT_EQ(config["options"]["scales"]["x"]["title"]["text"], "tokens");
  ChartOfLines log = TwoLines();
  log.log_x = true;
  EXPECT_EQ(LineChartConfig(log)["data"]["datasets"][0]["data"].size(), 2u);  // nothing at x = 0
  EXPECT_EQ(LineChartConfig(log)["options"]["scales"]["x"]["type"], "logarithmic");
  EXPECT_EQ(ConfigIn(HtmlLineChart(TwoLines())), config);
}

TEST(HtmlPage, TheSvgHasTheSamePoints) {
  const std::string svg = LineChartSvg(TwoLines());
  // x from 0 to 30 on pixels 64 to 682, y from 1 to 4 on 336 to 8, both ending on ticks
  EXPECT_NE(svg.find("d=\"M64.0 8.0L270.0 226.7L682.0 336.0\""), std::string::npos) << svg;
  EXPECT_EQ(Count(svg, "<circle cx"), 1u);
  EXPECT_NE(svg.find(">&lt;/script&gt;</text>"), std::string::npos);
  for (const ChartOfLines& empty : {ChartOfLines{}, ChartOfLines{.log_x = true, .log_y = true, .series = {{.name = "none"}}}}) {
    const std::string drawn = LineChartSvg(empty);
    EXPECT_EQ(Count(drawn, "nan") + Count(drawn, "inf"), 0u) << drawn;
  }
}

TEST(HtmlPage, TicksAreRoundAndCoverTheRange) {
  EXPECT_EQ(AxisTicks(0, 10, 6), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(AxisTicks(1.2, 3.9, 6), (std::vector<double>{1, 2, 3, 4}));
  EXPECT_EQ(AxisTicks(-5, 5, 3), (std::vector<double>{-5, 0, 5}));
  for (const auto& [low, high] :
       std::vector<std::pair<double, double>>{{0, 0}, {3, 3}, {-2, -2}, {1e-9, 2e-9}, {1e12, 3e12}, {0.3, 0.30001}}) {
    for (const int count : {1, 2, 6}) {
      const std::vector<double> ticks = AxisTicks(low, high, count);
      ASSERT_GE(ticks.size(), 2u);
      ASSERT_LE(ticks.size(), static_cast<size_t>(count) + 2);
      EXPECT_LE(ticks.front(), low);
      EXPECT_GE(ticks.back(), high - (high - low) * 1e-6);
    }
  }
}

}  // namespace
}  // namespace moe
