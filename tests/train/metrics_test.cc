#include "moe/train/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "testing/temp_dir.h"

namespace moe {
namespace {

using nlohmann::json;
using test::TempDir;

StepMetrics Sample() {
  StepMetrics metrics{.step = 3, .steps = 10, .tokens = 300, .step_tokens = 100, .loss = 2.5, .lr = 0.01, .grad_norm = 0.5};
  metrics.seconds = 1.5;
  metrics.parts = {.data = 0.1, .model = 0.2, .optimizer = 0.2};
  metrics.layers.resize(3);
  metrics.layers[0] = {.tokens_per_expert = {6, 2, 0},
                       .num_tokens = 4,
                       .num_slots = 8,
                       .num_dropped = 2,
                       .balance_loss = 1.5,
                       .entropy = 0.5,
                       .losses = {.gshard = 1.75, .global = 0.5},
                       .gate_sum = 4,
                       .largest_logit = 7};
  metrics.layers[2] = {.tokens_per_expert = {3, 3, 2},
                       .num_tokens = 4,
                       .num_slots = 8,
                       .balance_loss = 1,
                       .z_loss = 4,
                       .entropy = 1.5,
                       .losses = {.gshard = 1.25},
                       .gate_sum = 2,
                       .largest_logit = 3};
  return metrics;
}

TEST(StepMetrics, AveragesOverMoeLayersOnly) {
  const StepMetrics metrics = Sample();
  EXPECT_DOUBLE_EQ(metrics.balance_loss(), 1.25);
  EXPECT_DOUBLE_EQ(metrics.z_loss(), 2);
  EXPECT_DOUBLE_EQ(metrics.max_violation(), 6 / (8.0 / 3) - 1);
  EXPECT_DOUBLE_EQ(metrics.drop_rate(), 2 / 16.0);
  EXPECT_DOUBLE_EQ(metrics.tokens_per_s(), 200);
  EXPECT_EQ(StepMetrics().drop_rate(), 0);
  EXPECT_DOUBLE_EQ(metrics.coefficient_of_variation(), std::sqrt(56.0 / 9) / (8.0 / 3));  // of 6, 2, 0
  EXPECT_DOUBLE_EQ(metrics.entropy(), 1);
  EXPECT_DOUBLE_EQ(metrics.gate_mean(), (0.5 + 0.25) / 2);
  EXPECT_EQ(metrics.largest_logit(), 7);
  EXPECT_EQ(metrics.dead_experts(), 1);
  EXPECT_EQ(StepMetrics().gate_mean(), 0);
  EXPECT_EQ(StepMetrics().largest_logit(), 0);
}

TEST(StepMetrics, LineHasTheStableFields) {
  const json line = json::parse(ToJsonLine(Sample()));
  for (const char* key :
       {"step", "loss", "tokens", "tokens_per_s", "lr", "grad_norm", "aux_loss", "z_loss", "max_violation", "drop_rate",
        "seconds", "coefficient_of_variation", "entropy", "dead_experts", "gate_mean", "largest_logit"}) {
    EXPECT_TRUE(line.contains(key) && line[key].is_number()) << key;
  }
  EXPECT_EQ(line["layers"].size(), 3u);
  EXPECT_EQ(line["layers"][0]["tokens_per_expert"], json({6, 2, 0}));
  EXPECT_TRUE(line["layers"][1].is_null());
  EXPECT_EQ(line["layers"][0]["dropped"], 2);
  EXPECT_EQ(line["layers"][0]["drop_rate"], 0.25);
  EXPECT_EQ(line["layers"][0]["dead_experts"], 1);
  EXPECT_EQ(line["layers"][2]["gate_mean"], 0.25);
  EXPECT_EQ(line["layers"][2]["largest_logit"], 3);
  EXPECT_EQ(line["layers"][2]["coefficient_of_variation"], std::sqrt(2.0 / 9) / (8.0 / 3));  // of 3, 3, 2
  EXPECT_EQ(line["gshard_loss"], 1.5);
  EXPECT_EQ(line["global_loss"], 0.25);
  EXPECT_EQ(line["layers"][2]["gshard_loss"], 1.25);
  EXPECT_FALSE(line.contains("load_loss"));
  EXPECT_FALSE(line["layers"][2].contains("global_loss"));
  EXPECT_FALSE(line.contains("validation_loss"));
  ValidationMetrics validation{.loss = 1.25, .bits_per_byte = 2.5, .seconds = 0.5};
  validation.layers = {{}, {.tokens_per_expert = {1, 3}, .max_violation = 0.5, .gate_mean = 0.75}};
  const json evaluated = json::parse(WithValidation(line.dump(), validation));
  EXPECT_TRUE(evaluated["validation_layers"][0].is_null());
  EXPECT_EQ(evaluated["validation_layers"][1]["tokens_per_expert"], json({1, 3}));
  EXPECT_EQ(evaluated["validation_layers"][1]["max_violation"], 0.5);
  EXPECT_EQ(evaluated["validation_layers"][1]["gate_mean"], 0.75);
  EXPECT_EQ(evaluated["validation_loss"], 1.25);
  EXPECT_EQ(evaluated["bits_per_byte"], 2.5);
  EXPECT_EQ(evaluated["step"], 3);
}

TEST(MetricsFile, AppendsAndShortensToWholeLines) {
  const TempDir dir;
  const std::string path = dir / "metrics.jsonl";
  {
    auto file = MetricsFile::Open(path);
    ASSERT_TRUE(file) << file.error().Message();
    ASSERT_TRUE(file->Append("one"));
    ASSERT_TRUE(file->Append("two"));
    EXPECT_EQ(file->bytes(), 8);
    ASSERT_TRUE(file->Sync());
    const auto second = MetricsFile::Open(path);
    ASSERT_FALSE(second);
    EXPECT_NE(second.error().what.find("another process"), std::string::npos);
  }
  for (const auto& [keep, want] :
       std::vector<std::pair<int64_t, std::string>>{{100, "one\ntwo\nx\n"}, {7, "one\nx\n"}, {3, "x\n"}}) {
    test::WriteFile(path, "one\ntwo\n");
    auto file = MetricsFile::Open(path);
    ASSERT_TRUE(file);
    ASSERT_TRUE(file->Truncate(keep));
    ASSERT_TRUE(file->Append("x"));
    EXPECT_EQ(test::ReadFile(path), want);
  }
  EXPECT_FALSE(MetricsFile::Open(dir / "no/such/folder"));
}

}  // namespace
}  // namespace moe
