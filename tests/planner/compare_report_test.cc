// What is made of the runs' numbers: statistics by hand, tables, pages.

#include <cmath>

#include "tests/planner/compare_fixture.h"

namespace moe::test {
namespace {

using nlohmann::json;

TEST(CompareStatistics, ByHand) {
  const std::vector<double> values = {1, 2, 3, 6};
  EXPECT_EQ(SpreadOf(values).count, 4);
  EXPECT_DOUBLE_EQ(SpreadOf(values).mean, 3);
  EXPECT_DOUBLE_EQ(SpreadOf(values).deviation, std::sqrt(14.0 / 3));  // (4 + 1 + 0 + 9) / (4 - 1)
  EXPECT_EQ(SpreadOf(std::vector<double>{5}).deviation, 0);
  EXPECT_EQ(SpreadOf({}).count, 0);
  EXPECT_DOUBLE_EQ(Quantile({6, 1, 3, 2}, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(Quantile({6, 1, 3, 2}, 0.25), 1.75);
  EXPECT_DOUBLE_EQ(Quantile({6, 1, 3, 2}, 1), 6);
  EXPECT_DOUBLE_EQ(Quantile({4}, 0.3), 4);
}

TEST(CompareStatistics, SpikesStandOutFromTheMedianBeforeThem) {
  std::vector<double> losses(100, 2.0);
  EXPECT_EQ(FindSpikes(losses).steps, 0);
  losses[60] = 2.0 + kSpikeMargin * 0.99;
  EXPECT_EQ(FindSpikes(losses).steps, 0);
  EXPECT_NEAR(FindSpikes(losses).worst, kSpikeMargin * 0.99, 1e-12);
  losses[70] = 2.0 + kSpikeMargin * 1.01;
  losses[71] = 3.5;
  EXPECT_EQ(FindSpikes(losses).steps, 2);
  EXPECT_DOUBLE_EQ(FindSpikes(losses).worst, 1.5);
  losses[kSpikeLeast - 1] = 9;  // too early to say
  EXPECT_EQ(FindSpikes(losses).steps, 2);
  // a loss that stays high is one for as long as the median of the window before is low
  std::vector<double> step(200, 2.0);
  std::fill(step.begin() + 100, step.end(), 3.0);
  EXPECT_EQ(FindSpikes(step).steps, kSpikeWindow / 2 + 1);  // at the last of them the median is halfway: 0.5 above is enough
  EXPECT_EQ(FindSpikes({}).steps, 0);
  EXPECT_EQ(FindSpikes(std::vector<double>(5, 1.0)).steps, 0);
}

json Step(int64_t step, double loss, const std::vector<double>& violations, double dropped, std::optional<double> logit) {
  json layers = json::array({nullptr});
  for (const double violation : violations) layers.push_back({{"max_violation", violation}});
  json line = {{"step", step},
               {"tokens", step * 64},
               {"loss", loss},
               {"drop_rate", dropped},
               {"seconds_by_part", {{"data", 0.25}, {"model", 0.5}, {"optimizer", static_cast<double>(step)}}},
               {"layers", layers}};
  if (logit) line["largest_logit"] = *logit;
  return line;
}

class CompareReportTest : public CompareTest {
 protected:
  // A finished run whose numbers are known.
  void WriteRun(const std::string& folder, int64_t seed, double shift, const std::vector<double>& ratios = {}) {
    std::filesystem::create_directories(folder);
    std::string lines;
    for (int64_t step = 1; step <= 4; ++step) {
      const double s = static_cast<double>(step);
      json line = Step(step, 5 - s + shift, {s, s + 2}, 0.1 * s, shift > 1 ? std::nullopt : std::optional(10 - s));
      if (step % 2 == 0) line["bits_per_byte"] = 3 - s / 4 + shift;
      lines += line.dump() + "\n";
    }
    WriteFile(folder + "/metrics.jsonl", lines);
    json summary = {
        {"seed", seed},
        {"failed", ""},
        {"kernels", "k"},
        {"threads", 3},
        {"data_digest", "d"},
        {"held_out_digest", "h"},
        {"models_kept", false},
        {"parameters_total", 2000},
        {"parameters_active", 1000},
        {"held_out",
         {{"loss_sum", (1.5 + shift) * 80 * std::log(2)},
          {"tokens", 100},
          {"bytes", 80},
          {"layers",
           {{{"tokens_per_expert", json::array()}, {"max_violation", 0}, {"drop_rate", 0}, {"entropy", 0}, {"dead_experts", 0}},
            {{"tokens_per_expert", {1, 3}}, {"max_violation", 0.5}, {"drop_rate", 0.25}, {"entropy", 1}, {"dead_experts", 1}},
            {{"tokens_per_expert", {2, 2}},
             {"max_violation", 0.0},
             {"drop_rate", 0.75},
             {"entropy", 1},
             {"dead_experts", 2}}}}}},
        {"step_s_in_turns", {{"base", std::vector<double>(ratios.size(), 2.0)}, {"own", json::array()}}}};
    for (const double ratio : ratios) summary["step_s_in_turns"]["own"].push_back(2 * ratio);
    WriteFile(folder + "/summary.json", summary.dump());
  }
  // base and wide with both seeds, one with the second only.
  CompareReport Report(const std::string& against = "") {
    CompareOptions options = Options("c");
    options.against = against;
    WriteRun(Folder("c/base/seed-1"), 1, 0.0);
    WriteRun(Folder("c/base/seed-2"), 2, 0.5);
    WriteRun(Folder("c/wide/seed-1"), 1, 0.25, {1.5, 1.0, 2.0});
    WriteRun(Folder("c/wide/seed-2"), 2, 1.25);
    WriteRun(Folder("c/one/seed-2"), 2, 0.75);
    return CollectComparison(MakeComparePlan(options).value()).value();
  }
};

TEST_F(CompareReportTest, ARunsNumbers) {
  const CompareReport report = Report();
  EXPECT_EQ(report.kernels, "k");
  EXPECT_EQ(report.threads, 3);
  EXPECT_FALSE(report.complete());
  const CompareResult& run = report.runs[0][0];
  EXPECT_NEAR(run.bits_per_byte, 1.5, 1e-12);
  EXPECT_DOUBLE_EQ(run.best_bits_per_byte, 2.0);
  EXPECT_DOUBLE_EQ(run.train_loss, 1.0);      // a tenth of 4 steps: the last
  EXPECT_DOUBLE_EQ(run.max_violation, 0.25);  // the dense layer does not count
  EXPECT_DOUBLE_EQ(run.held_out_drop_rate, 0.5);
  EXPECT_EQ(run.dead_experts, 3);
  EXPECT_DOUBLE_EQ(run.drop_rate, 0.25);
  EXPECT_DOUBLE_EQ(run.largest_logit.value(), 9);
  EXPECT_DOUBLE_EQ(run.step_s, 3.25);  // median of 0.75 + 1..4
  ASSERT_EQ(run.curve.size(), 2u);
  EXPECT_EQ(run.curve[1].tokens, 256);
  EXPECT_DOUBLE_EQ(run.curve[1].bits_per_byte, 2.0);
  EXPECT_DOUBLE_EQ(run.curve[1].train_loss, 1.5);     // steps 3 and 4
  EXPECT_DOUBLE_EQ(run.curve[1].max_violation, 4.5);  // (3 + 5 + 4 + 6) / 4
  EXPECT_DOUBLE_EQ(run.curve[1].drop_rate, 0.35);
  EXPECT_DOUBLE_EQ(run.curve[1].largest_logit.value(), 7);
  EXPECT_FALSE(report.runs[2][1].largest_logit.has_value());  // older metrics.jsonl
}

TEST_F(CompareReportTest, DifferencesAreSeedBySeedAndTimesRelativeToTheBase) {
  const CompareReport report = Report();
  const auto near = [](const std::vector<double>& got, const std::vector<double>& want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-12);
  };
  near(DifferencesOf(report, 0), {0, 0});
  near(DifferencesOf(report, 1), {0.25});  // one: seed 2 only
  near(DifferencesOf(report, 2), {0.25, 0.75});
  near(DifferencesOf(Report("wide"), 1), {-0.5});
  EXPECT_DOUBLE_EQ(StepRatioOf(report, 0), 1);
  EXPECT_DOUBLE_EQ(StepRatioOf(report, 1), 0);  // not measured
  EXPECT_DOUBLE_EQ(StepRatioOf(report, 2), 1.5);
  EXPECT_DOUBLE_EQ(StepSecondsOf(report, 2), 1.5 * 3.25);
  EXPECT_DOUBLE_EQ(StepSecondsOf(report, 1), 3.25);
  const auto curve = MeanCurve(report, 0);
  ASSERT_EQ(curve.size(), 2u);
  EXPECT_DOUBLE_EQ(curve[0].bits_per_byte, 2.75);
  const json result = CompareJson(report);
  EXPECT_NEAR(result["variants"][2]["difference"]["mean"], 0.5, 1e-12);
  EXPECT_NEAR(result["variants"][2]["difference"]["deviation"], std::sqrt(0.125), 1e-12);
  EXPECT_DOUBLE_EQ(result["variants"][2]["runs"][0]["curve"][1]["seconds"], 4 * 1.5 * 3.25);
}

TEST_F(CompareReportTest, EveryFormOfTheReportHasTheNumbers) {
  const CompareReport report = Report();
  const std::string text = CompareText(report), markdown = CompareMarkdown(report), html = CompareHtml(report);
  for (const char* part : {"2.2500 ± 0.7071", "+0.5000 ± 0.3536", "0.250", "25.00 %", "4875.0 ms", "1.50", "model.experts=6",
                           "0.3 nats", "Not all runs are done"}) {
    for (const std::string* form : {&text, &markdown, &html})
      EXPECT_NE(form->find(part), std::string::npos) << part << " in\n" << form->substr(0, 6000);
  }
  EXPECT_NE(markdown.find("| wide | 2.2500 ± 0.7071 | +0.5000 ± 0.3536 |"), std::string::npos) << markdown;
  EXPECT_NE(html.find("<h2>variants</h2>"), std::string::npos);
  for (const char* chart : {"Bits per byte against tokens", "Bits per byte against seconds", "Max violation over time",
                            "Drop rate", "Largest logit of the router", "Time of a training step"}) {
    EXPECT_NE(html.find(fmt::format("<figcaption>{}</figcaption>", chart)), std::string::npos) << chart;
  }
  for (const std::string* form : {&text, &markdown}) EXPECT_EQ(form->find("nan"), std::string::npos);
}

TEST_F(CompareReportTest, RowsOfAnAxisBeginWithTheBaseUnlessItIsAmongThem) {
  CompareOptions options = Options("c", {});
  const auto variant = [](const char* name, const char* axis, std::vector<std::string> sets) {
    return RecipeVariant{.name = name, .axis = axis, .sets = std::move(sets), .where = name};
  };
  options.variants = {variant("a", "x", {"model.experts=5"}), variant("b", "y", {"model.experts=6"}), variant("c", "x", {}),
                      variant("d", "", {"model.experts=7"})};
  const auto plan = MakeComparePlan(options).value();
  using Rows = std::vector<std::pair<std::string, std::vector<size_t>>>;
  EXPECT_EQ(RowsByAxis(plan), (Rows{{"x", {1, 3}}, {"y", {0, 2}}, {"variants", {0, 4}}}));
}

TEST_F(CompareReportTest, NothingDoneYetIsAReportToo) {
  const CompareReport report = CollectComparison(MakeComparePlan(Options("none")).value()).value();
  EXPECT_NE(CompareText(report).find("Not all runs are done"), std::string::npos);
  EXPECT_NE(CompareHtml(report).find("No run is done yet."), std::string::npos);
  EXPECT_FALSE(CompareJson(report)["complete"].get<bool>());
  EXPECT_NE(CompareMarkdown(report).find("| wide | – | – |"), std::string::npos);
}

TEST_F(CompareReportTest, ADenseModelHasNoLogit) {
  WriteRun(Folder("c/base/seed-1"), 1, 0.0);
  WriteFile(Folder("c/base/seed-1/metrics.jsonl"), Step(1, 2, {}, 0, 0.0).dump() + "\n");
  const auto report = CollectComparison(MakeComparePlan(Options("c")).value());
  ASSERT_TRUE(report) << report.error().Message();
  EXPECT_EQ(report->runs[0][0].steps, 1);
  EXPECT_FALSE(report->runs[0][0].largest_logit.has_value());
}

TEST_F(CompareReportTest, DamagedFilesAreNamed) {
  Report();
  const std::string folder = Folder("c/base/seed-2");
  WriteFile(folder + "/metrics.jsonl", "{\"step\": 1}\n");
  ExpectError(CollectComparison(MakeComparePlan(Options("c")).value()), folder + "/metrics.jsonl:1",
              "something else than a training step");
  WriteFile(folder + "/summary.json", "{\"seed\": \"one\"}");
  ExpectError(CollectComparison(MakeComparePlan(Options("c")).value()), folder + "/summary.json", "remove the file");
  json other = json::parse(ReadFile(Folder("c/base/seed-1/summary.json")));
  Report();
  other["held_out_digest"] = "x", other["seed"] = 2;
  WriteFile(folder + "/summary.json", other.dump());
  ExpectError(CollectComparison(MakeComparePlan(Options("c")).value()), folder, "another held-out text (x), expected that of");
}

}  // namespace
}  // namespace moe::test
