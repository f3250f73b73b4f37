#include "moe/planner/sweep_report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "testing/tiny_model.h"

namespace moe {
namespace {

// A report whose model takes 1 s per step and whose twins take what they are told.
SweepReport Report(const std::vector<int64_t>& batches, const std::vector<double>& active, const std::vector<double>& total) {
  SweepReport report{.context = 64, .cpu = "Test CPU", .isa = "scalar", .threads = 2, .cache_bytes = 1 << 20};
  report.subjects = SweepSubjects(test::TinyMoe(), SweepWeights::kRandom, {.context = 5});
  for (size_t r = 0; r < batches.size(); ++r) {
    SweepRow row{
        .batch = batches[r], .read_bytes_per_s = 4e10, .read_min = 3e10, .read_max = 5e10, .rounds = 7, .rounds_used = 6};
    for (const double s : {1.0, active[r], total[r]}) {
      SweepCell cell{.s_per_step = s, .s_min = 0.9 * s, .s_max = 1.2 * s, .steps = 7, .distinct_experts = {3, 2}};
      cell.cost =
          DecodeCost(report.subjects[row.cells.size()].config, report.format, {row.batch, 64}, cell.distinct_experts).total();
      row.cells.push_back(cell);
    }
    report.rows.push_back(row);
  }
  return report;
}

TEST(Crossings, AreInterpolatedInLogBatch) {
  const std::vector<int64_t> batches = {1, 2, 8, 32};
  const std::vector<double> ratio = {2, 1, 1, 3};
  const auto at = Crossings(batches, ratio, 1.5);
  ASSERT_EQ(at.size(), 2);
  EXPECT_NEAR(at[0], std::sqrt(2.0), 1e-12);           // half way from 1 to 2
  EXPECT_NEAR(at[1], 8 * std::pow(4.0, 0.25), 1e-12);  // a quarter of the way from 8 to 32
  EXPECT_TRUE(Crossings(batches, ratio, 5).empty());
  EXPECT_TRUE(Crossings({}, {}, 1).empty());
}

TEST(Crossover, OfAValley) {
  const auto report = Report({1, 4, 16, 64, 256}, {1, 0.6, 0.5, 0.7, 0.9}, {3, 1.25, 1, 1, 2});
  const auto total = CrossoverTotal(report);
  ASSERT_EQ(total.size(), 2);
  EXPECT_NEAR(total[0], 4, 1e-9);
  EXPECT_NEAR(total[1], 64 * std::pow(4.0, 0.25), 1e-9);
  const auto active = CrossoverActive(report);
  ASSERT_EQ(active.size(), 2);
  EXPECT_NEAR(active[0], 16 * std::pow(4.0, -1.0 / 6), 1e-9);  // the foot of a parabola
  EXPECT_NEAR(active[1], 128, 1e-9);                           // half way from 0.7 to 0.9
}

TEST(Crossover, SaysNothingThatWasNotMeasured) {
  EXPECT_TRUE(CrossoverTotal(Report({1, 4}, {1, 0.9}, {3, 2})).empty());
  EXPECT_TRUE(CrossoverActive(Report({1, 4}, {1, 0.5}, {3, 2})).empty());               // still falling at the end
  EXPECT_EQ(CrossoverActive(Report({1, 4, 16}, {1, 0.5, 0.6}, {3, 2, 2})).size(), 1);   // not back yet
  EXPECT_EQ(CrossoverActive(Report({1, 4, 16}, {1, 0.85, 0.9}, {3, 2, 2})).size(), 1);  // never below 0.8
  EXPECT_TRUE(CrossoverActive(Report({}, {}, {})).empty());
}

TEST(SweepJson, HasTheStableFields) {
  const auto report = Report({1, 4, 16}, {1, 0.5, 0.6}, {3, 2, 1});
  const nlohmann::json json = SweepJson(report, "tiny");
  EXPECT_EQ(json["model"], "tiny");
  EXPECT_EQ(json["phase"], "decode");
  EXPECT_EQ(json["dtype"], "bf16");
  EXPECT_EQ(json["machine"]["cpu"], "Test CPU");
  EXPECT_EQ(json["machine"]["threads"], 2);
  ASSERT_EQ(json["rows"].size(), 3);
  const auto& row = json["rows"][1];
  EXPECT_EQ(row["batch"], 4);
  EXPECT_EQ(row["speedup_total"], 2.0);
  EXPECT_EQ(row["speedup_active"], 0.5);
  EXPECT_EQ(row["moe"]["s_per_step"], 1.0);
  EXPECT_EQ(row["moe"]["tokens_per_s"], 4.0);
  EXPECT_EQ(row["moe"]["distinct_experts"], 2.5);
  EXPECT_EQ(row["dense_active"]["tokens_per_s"], 8.0);
  EXPECT_FALSE(row["dense_total"].contains("distinct_experts"));
  for (size_t i = 0; i < 3; ++i) {
    const auto& cell = row[std::vector{"moe", "dense_active", "dense_total"}[i]];
    const Cost cost = report.rows[1].cells[i].cost;
    EXPECT_EQ(cell["bytes"], cost.bytes);
    EXPECT_EQ(cell["flop"], cost.flop);
    EXPECT_DOUBLE_EQ(cell["fraction"].get<double>(), cost.bytes / cell["s_per_step"].get<double>() / 4e10);
  }
  EXPECT_NEAR(json["b_sat"].get<double>(), 4.0 / 2 * std::log(20.0), 0.01);
  EXPECT_EQ(json["crossover_total"].size(), 1);
  ASSERT_EQ(json["crossover_active"].size(), 1);
  EXPECT_NEAR(json["crossover_active"][0].get<double>(), 4 * std::pow(4.0, 1.0 / 3), 0.01);
  EXPECT_EQ(json["models"]["moe"]["experts"], 4);
  EXPECT_EQ(json["models"]["moe"]["parameters_total"], CountParameters(test::TinyMoe()).total);
  EXPECT_TRUE(json["models"].contains("dense_total"));
}

// Without the breaks that fit lines to a terminal.
std::string OneLine(const std::string& text) {
  std::istringstream words(text);
  std::string out;
  for (std::string word; words >> word;) out += word + " ";
  return out;
}

TEST(SweepText, SaysInWordsWhatTheTablesShow) {
  const std::string text = SweepText(Report({1, 4, 16}, {1, 0.5, 0.6}, {3, 2, 1}), "tiny");
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 120) << line;
  for (const char* part :
       {"machine Test CPU, 2 threads, scalar, read probe 30.0 to 50.0 GB/s", "tiny: ", "4 experts of width 16, top-2", "2.5/4",
        "0.50x", "3.00x",
        "equal total parameters the MoE is faster at batch 1 to 4 (2.00x to 3.00x), about as fast at batch 16 (1.00x).",
        "equal active parameters the MoE is about as fast at batch 1 (1.00x), slower at batch 4 to 16 (0.50x to 0.60x).",
        "memory changed speed while measuring (30.0 to 50.0 GB/s)", "last-level cache (1 MiB)"}) {
    EXPECT_NE(OneLine(text).find(part), std::string::npos) << "expected: " << part << "\n" << text;
  }
}

TEST(SweepText, OfNothing) {
  EXPECT_NE(SweepText(Report({}, {}, {}), "tiny").find("Stopped before the first batch"), std::string::npos);
}

}  // namespace
}  // namespace moe
