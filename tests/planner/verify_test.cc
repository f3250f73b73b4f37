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

std::array<double, kNumStepParts> Parts(const ModelConfig& config, const Step& step, const Conditions& now, double slower) {
  auto parts = Predict({.config = config}, step, now).part_s;
  for (double& s : parts) s *= slower;
  return parts;
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
                           .part_s = Parts(subject.config, step, {machine, memory}, slower),
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

// The boundary of that name, of a sweep whose equal-total twin takes ratio(batch) times as long as the model.
template <class Ratio>
BoundaryCheck MeasuredBoundary(const std::string& name, double repeat_error, Ratio&& ratio) {
  const MachineProfile machine = FakeMachine();
  SweepReport report = FakeSweep(machine, 1, 1);
  for (SweepRow& row : report.rows) {
    for (SweepCell& cell : row.cells) cell.repeat_error = repeat_error;
    row.cells[2].s_per_step = ratio(static_cast<double>(row.batch)) * row.cells[0].s_per_step;
  }
  const Verification v = Verify(report, machine);
  for (const BoundaryCheck& b : v.boundaries) {
    if (b.name == "speed-up over equal total " + name) return b;
  }
  ADD_FAILURE() << "no boundary " << name;
  return {};
}

TEST(Verify, ASteepBoundaryIsKnownWellAndAFlatOneIsNot) {
  // Twice as much at every batch until 64: 10 % of it is 0.1 in the logarithm of the batch.
  const auto steep = [](double batch) { return batch <= 64 ? batch / 16 : 4.0; };
  const BoundaryCheck rises = MeasuredBoundary("rises above 1.25", 0.1, steep);
  ASSERT_TRUE(rises.measured);
  EXPECT_NEAR(*rises.measured, 16 * std::pow(2, 0.25), 1e-9);
  EXPECT_NEAR(rises.from, 16 * std::pow(2, 1.25 / 1.1 - 1), 1e-9);
  EXPECT_NEAR(rises.to, 16 * std::pow(2, 1.25 / 0.9 - 1), 1e-9);
  // 1.2 from 8 to 32, 1.3 before: a tenth more and it never falls, a tenth less and it has fallen before the first batch.
  const auto flat = [](double batch) { return batch < 8 ? 1.3 : batch <= 32 ? 1.2 : 4; };
  const BoundaryCheck falls = MeasuredBoundary("falls below 1.25", 0.1, flat);
  ASSERT_TRUE(falls.measured);
  EXPECT_NEAR(*falls.measured, 4 * std::sqrt(2), 1e-9);
  EXPECT_EQ(falls.from, 1);
  EXPECT_EQ(falls.to, 4096);
  const BoundaryCheck sure = MeasuredBoundary("falls below 1.25", 0, flat);
  EXPECT_EQ(sure.from, *sure.measured);
  EXPECT_EQ(sure.to, *sure.measured);
}

TEST(Verify, TheRangeOfABoundarySaysWhetherThePredictedOneIsInIt) {
  BoundaryCheck b{.predicted = 8, .measured = 12, .edge = 1, .from = 9, .to = 20};
  EXPECT_FALSE(b.within_repeats());
  b.from = 8;
  EXPECT_TRUE(b.within_repeats());
  b.predicted = std::nullopt, b.from = 2;
  EXPECT_FALSE(b.within_repeats());  // beyond the end of the sweep
}

TEST(Verify, TheLeastOfAFlatValleyMayBeAnywhereInIt) {
  const MachineProfile machine = FakeMachine();
  SweepReport report = FakeSweep(machine, 1, 1);
  for (SweepRow& row : report.rows) {
    for (SweepCell& cell : row.cells) cell.repeat_error = 0.05;
    const double batch = static_cast<double>(row.batch), ratio = batch < 4 || batch > 64 ? 0.9 : batch == 16 ? 0.49 : 0.5;
    row.cells[1].s_per_step = ratio * row.cells[0].s_per_step;
  }
  const Verification v = Verify(report, machine);
  const auto least = std::ranges::find(v.boundaries, "speed-up over equal active is least", &BoundaryCheck::name);
  ASSERT_NE(least, v.boundaries.end());
  // Until 0.49 * 1.05 on the way up.
  EXPECT_NEAR(least->from, 4 / std::pow(2, (0.49 * 1.05 - 0.5) / 0.4), 1e-9);
  EXPECT_NEAR(least->to, 64 * std::pow(2, (0.49 * 1.05 - 0.5) / 0.4), 1e-9);
}

TEST(Verify, ABoundaryOfOneCurveAloneIsKept) {
  const MachineProfile machine = FakeMachine();
  SweepReport report = FakeSweep(machine, 1, 1);
  const size_t both = Verify(report, machine).boundaries.size();  // predicted never to fall to 1.25
  for (SweepRow& row : report.rows) row.cells[2].s_per_step = (row.batch < 64 ? 1.05 : 2) * row.cells[0].s_per_step;
  const Verification v = Verify(report, machine);
  ASSERT_EQ(v.boundaries.size(), both + 1);
  const auto alone = std::ranges::find_if(v.boundaries, [](const BoundaryCheck& b) { return !b.exact(); });
  ASSERT_NE(alone, v.boundaries.end());
  EXPECT_EQ(alone->name, "speed-up over equal total rises above 1.25");
  ASSERT_TRUE(alone->measured && !alone->predicted);
  EXPECT_NEAR(*alone->measured, 32 * std::pow(2, 0.2 / 0.95), 1e-9);
  EXPECT_EQ(alone->edge, 4096);
  EXPECT_NEAR(alone->factor(), 4096 / *alone->measured, 1e-9);
  EXPECT_NE(VerifyText(report, v).find("not predicted among these batches, measured at batch 37.0, a factor of at least 110.6"),
            std::string::npos)
      << VerifyText(report, v);
  nlohmann::json json = SweepJson(report, "shape");
  AddVerification(report, v, json);
  EXPECT_TRUE(std::ranges::any_of(json["boundaries"], [](const auto& b) { return b["predicted"].is_null(); }));
  EXPECT_TRUE(v.measured_plateau.exists());
  EXPECT_FALSE(v.predicted_plateau.exists());
}

TEST(Verify, GainIsMeasuredTimeBesideCountedFlop) {
  const MachineProfile machine = FakeMachine();
  SweepReport report = FakeSweep(machine, 1, 1);
  std::vector<SweepCell>& cells = report.rows.back().cells;
  const Verification v = Verify(report, machine);
  ASSERT_TRUE(v.whole && v.experts);
  EXPECT_NEAR(v.whole->speedup, cells[2].s_per_step / cells[0].s_per_step, 1e-12);
  // Of 32 experts 2 are taken; the router's product comes on top, and the twin is as much wider.
  EXPECT_NEAR(v.experts->flop_ratio, 16, 0.1);
  EXPECT_GT(v.experts->flop_ratio, v.whole->flop_ratio);
  const double seconds =
      cells[0].part_s[static_cast<size_t>(StepPart::kExperts)] + cells[0].part_s[static_cast<size_t>(StepPart::kRouter)];
  EXPECT_NEAR(v.experts->speedup, cells[2].part_s[static_cast<size_t>(StepPart::kExperts)] / seconds, 1e-9);
  EXPECT_NEAR(v.experts->share(), v.experts->speedup / v.experts->flop_ratio, 1e-12);
  nlohmann::json json = SweepJson(report, "shape");
  AddVerification(report, v, json);
  EXPECT_EQ(json["gain_at_largest_batch"]["expert_layers"]["share"], v.experts->share());
}

TEST(SweepValley, DrawsMeasuredCurvesAndThePredictedOne) {
  const MachineProfile machine = FakeMachine();
  SweepReport report = FakeSweep(machine, 1, 1);
  const Verification v = Verify(report, machine);
  const TerminalPlot measured = ValleyOf(report, nullptr), both = ValleyOf(report, &v);
  ASSERT_EQ(measured.series.size(), 2);
  ASSERT_EQ(both.series.size(), 3);
  EXPECT_EQ(both.x.size(), report.rows.size());
  for (size_t r = 0; r < report.rows.size(); ++r) {
    EXPECT_NEAR(both.series[0].y[r], *report.Speedup(report.rows[r], SweepRole::kDenseTotal), 1e-12);
    EXPECT_NEAR(both.series[1].y[r], *report.Speedup(report.rows[r], SweepRole::kDenseActive), 1e-12);
    EXPECT_NEAR(both.series[2].y[r], both.series[0].y[r], 1e-9);  // a perfect prediction
  }
  ASSERT_FALSE(both.bands.empty());
  EXPECT_EQ(both.bands.back().to, 4096);
  report.subjects.resize(1);
  for (SweepRow& row : report.rows) row.cells.resize(1);
  EXPECT_TRUE(ValleyOf(report, nullptr).series.empty());
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
  EXPECT_NEAR(json["b_m"].get<double>() / json["b_d"].get<double>(), 16, 1e-9);  // 32 experts, top-2
  EXPECT_EQ(json["plateau"], v.measured_plateau.exists());
  EXPECT_EQ(json["plateau_predicted"], v.predicted_plateau.exists());
  EXPECT_TRUE(json["best_batch"].is_number() || json["best_batch"].is_null());
  EXPECT_EQ(json["rows"][0]["moe"]["regime"], json["rows"][0]["regime"]);
  EXPECT_TRUE(json["rows"][0]["moe"]["bound"].is_string());
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
