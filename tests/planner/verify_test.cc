#include "moe/planner/verify.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "moe/planner/sweep_report.h"
#include "testing/tiny_model.h"
#include "tests/planner/step_fixture.h"

namespace moe {
namespace {

ModelConfig Shape() {
  ModelConfig config = test::TinyMoe();
  config.hidden = 512, config.head_width = 128, config.vocab_size = 2048, config.context = 4096;
  LayerSpec layer{.ffn = FfnKind::kMoe};
  layer.moe.router.num_experts = 32, layer.moe.router.top_k = 2, layer.moe.expert_width = 1024;
  config.layers.assign(4, layer);
  return config;
}

// A sweep on a machine that is `memory` times as fast at reading as the profile says, every step `slower` times as long as
// predicted there.
SweepReport FakeSweep(const MachineProfile& machine, double memory, double slower) {
  SweepReport report{.phase = Phase::kDecode, .context = 64, .routing = {SweepRouting::kUniform}};
  report.subjects = SweepSubjects(Shape(), SweepWeights::kRandom, {});
  for (const LayerSpec& layer : report.subjects[0].config.layers) {
    report.chances.push_back(UniformChances(layer.moe.router.num_experts, layer.moe.router.top_k));
  }
  for (int64_t batch = 1; batch <= 4096; batch *= 2) {
    SweepRow row{.batch = batch,
                 .weights_bytes_per_s = memory * machine.memory_bytes_per_s(),
                 .pace_flop_per_s = machine.pace_flop_per_s};
    for (const SweepSubject& subject : report.subjects) {
      const Step step{Phase::kDecode, batch, 64};
      row.cells.push_back({.s_per_step = slower * Predict({.config = subject.config}, step, {machine, memory}).s,
                           .repeat_error = 0.02,
                           .distinct_experts = UniformDistinctExperts(subject.config, batch)});
    }
    report.rows.push_back(std::move(row));
  }
  return report;
}

MachineProfile FakeMachine() {
  MachineProfile machine = test::FakeCpu(2);
  machine.pace_flop_per_s = 200e9;
  return machine;
}

TEST(Verify, OfAPerfectPredictionNothingIsOff) {
  const MachineProfile machine = FakeMachine();
  const SweepReport report = FakeSweep(machine, 1, 1);
  const Verification v = Verify(report, machine);
  EXPECT_NEAR(v.adjacent.all, 0, 1e-12);
  EXPECT_NEAR(v.cached.all, 0, 1e-12);
  EXPECT_NEAR(v.repeat_error, 0.02, 1e-12);
  EXPECT_EQ(v.stated_error, 0.1);
  ASSERT_EQ(v.regimes.size(), report.rows.size());
  for (const uint8_t named : v.named) EXPECT_TRUE(named);
  EXPECT_EQ(v.regimes.front(), Regime::kMemory);
  EXPECT_EQ(v.regimes.back(), Regime::kCompute);
  ASSERT_GE(v.boundaries.size(), 2);
  for (const BoundaryCheck& b : v.boundaries) EXPECT_NEAR(b.factor(), 1, 1e-9) << b.name;
}

TEST(Verify, TheAdjacentProbeSeesAnotherPhaseOfTheMemory) {
  const MachineProfile machine = FakeMachine();
  const Verification v = Verify(FakeSweep(machine, 1.5, 1), machine);
  EXPECT_NEAR(v.adjacent.all, 0, 1e-12);
  EXPECT_GT(v.cached.all, 0.1);
  EXPECT_GT(v.cached.by_regime[static_cast<size_t>(Regime::kMemory)],
            v.cached.by_regime[static_cast<size_t>(Regime::kCompute)]);
}

TEST(Verify, NamesNoRegimeWhereItMisses) {
  const MachineProfile machine = FakeMachine();
  SweepReport report = FakeSweep(machine, 1, 1.05);
  report.rows[2].cells[0].s_per_step *= 1.2;  // the model
  report.rows[4].cells[1].s_per_step *= 1.2;  // the equal-active twin has no say
  report.rows[6].cells[2].s_per_step /= 1.3;  // the equal-total twin
  const Verification v = Verify(report, machine);
  for (size_t r = 0; r < report.rows.size(); ++r) EXPECT_EQ(v.named[r], r != 2 && r != 6) << "row " << r;
  // Predicted over measured: 1/1.05 but for three cells of 39.
  const double usual = 1 - 1 / 1.05;
  const double expected = (36 * usual + 2 * (1 - 1 / (1.05 * 1.2)) + std::abs(1.3 / 1.05 - 1)) / 39;
  EXPECT_NEAR(v.adjacent.all, expected, 1e-9);
  const std::string text = VerifyText(report, v);
  EXPECT_NE(text.find("not named"), std::string::npos);
  EXPECT_NE(text.find("At 2 batches the prediction misses by more than 10.0 %"), std::string::npos) << text;
}

TEST(Verify, AnUnsteadySweepMayMissByMore) {
  const MachineProfile machine = FakeMachine();
  SweepReport report = FakeSweep(machine, 1, 1.15);
  for (SweepRow& row : report.rows) {
    for (SweepCell& cell : row.cells) cell.repeat_error = 0.08;
  }
  const Verification v = Verify(report, machine);
  EXPECT_NEAR(v.stated_error, 0.16, 1e-12);
  for (const uint8_t named : v.named) EXPECT_TRUE(named);
}

TEST(Verify, JsonSaysTheSame) {
  const MachineProfile machine = FakeMachine();
  SweepReport report = FakeSweep(machine, 1, 1);
  report.rows[1].cells[0].s_per_step *= 2;
  const Verification v = Verify(report, machine);
  nlohmann::json json = SweepJson(report, "shape");
  AddVerification(report, v, json);
  for (size_t r = 0; r < report.rows.size(); ++r) {
    const nlohmann::json& row = json["rows"][r];
    EXPECT_EQ(row["regime"].is_null(), r == 1);
    for (const char* model : {"moe", "dense_active", "dense_total"}) {
      const double error = row[model]["predicted"]["error"].get<double>();
      EXPECT_NEAR(error, r == 1 && std::string_view(model) == "moe" ? -0.5 : 0, 1e-9);
      EXPECT_NEAR(row[model]["predicted"]["s_per_step"].get<double>() / row[model]["s_per_step"].get<double>() - 1, error,
                  1e-9);
    }
  }
  EXPECT_NEAR(json["mape"]["all"].get<double>(), 0.5 / 39, 1e-9);
  EXPECT_EQ(json["mape"]["middle"].is_null(), std::isnan(v.adjacent.by_regime[static_cast<size_t>(Regime::kMiddle)]));
  EXPECT_EQ(json["boundaries"].size(), v.boundaries.size());
  EXPECT_EQ(json["stated_error"], v.stated_error);
}

// A router of its own sends tokens of one text to fewer experts than chance would: the experts that were touched are known.
TEST(Verify, TakesTheExpertsThatAModelsRouterChose) {
  const MachineProfile machine = FakeMachine();
  SweepReport report = FakeSweep(machine, 1, 1);
  for (SweepRow& row : report.rows) {
    for (double& distinct : row.cells[0].distinct_experts) distinct = std::max(2.0, distinct / 2);
  }
  const double by_chance = Verify(report, machine).cells[4][0].adjacent.s;
  report.routing = {SweepRouting::kModel};
  const double as_chosen = Verify(report, machine).cells[4][0].adjacent.s;
  EXPECT_LT(as_chosen, 0.8 * by_chance);
}

}  // namespace
}  // namespace moe
