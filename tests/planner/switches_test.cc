#include "moe/planner/switches.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "moe/costs/machine_json.h"
#include "moe/ops/gemm.h"
#include "moe/planner/calibrate_points.h"
#include "testing/test_context.h"
#include "tests/planner/step_fixture.h"

namespace moe::test {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

// Speed-ups at 1, 2, 4, 8, 16 panels, and at outputs of 1/2, 1, 2, 4, 8 times what is kept.
SwitchChoice Choose(const std::vector<double>& interleave, const std::vector<double>& stream = {}) {
  MachineProfile m = FakeCpu(2);
  double x = 1;
  for (const double y : interleave) m.switches.interleave.points.push_back({x, y}), x *= 2;
  x = static_cast<double>(CachedOutputBytes(2)) / 2;
  for (const double y : stream) m.switches.stream.points.push_back({x, y}), x *= 2;
  return ChooseSwitches(m);
}

int64_t Least(const std::vector<double>& interleave) {
  return Choose(interleave).switches.least_panels;
}

TEST(ChooseSwitches, WithoutMeasurementsAllIsAsUsual) {
  const SwitchChoice choice = Choose({});
  EXPECT_EQ(choice.switches.least_panels, KernelSwitches{}.least_panels);
  EXPECT_EQ(choice.switches.stream_bytes, 0);
  ASSERT_EQ(choice.why.size(), 2u);
  EXPECT_EQ(choice.why[0], "rows are interleaved from 4 panels on, as usual: not measured here");
}

TEST(ChooseSwitches, TheCrossingDecidesAndNoiseDoesNot) {
  EXPECT_EQ(Least({0.8, 0.9, 1.1, 1.2, 1.3}), 4);
  EXPECT_EQ(Least({0.8, 1.05, 1.1, 1.2, 1.3}), 2);
  EXPECT_EQ(Least({1.04, 1.05, 1.1, 1.2, 1.3}), 1);
  EXPECT_EQ(Least({0.8, 0.9, 0.9, 1.2, 1.3}), 8);
  EXPECT_EQ(Least({0.8, 0.8, 0.8, 0.8, 0.8}), kNever);
  // Within 3 % either way.
  EXPECT_EQ(Least({1.02, 1.02, 1.02, 1.02, 1.02}), 4);
  EXPECT_EQ(Least({0.98, 0.98, 0.98, 0.98, 0.98}), 4);
  // A point beyond one that does not gain is not reached.
  EXPECT_EQ(Least({1.2, 1.0, 1.1, 1.2, 1.3}), 4);
  EXPECT_EQ(Least({0.9, 0.9, 1.0, 0.8, 0.8}), 4);
}

TEST(ChooseSwitches, StreamsFromWhereItPays) {
  const int64_t kept = CachedOutputBytes(2);
  const auto bytes = [](const std::vector<double>& stream) { return Choose({}, stream).switches.stream_bytes; };
  EXPECT_EQ(bytes({0.8, 0.9, 1.0, 1.1, 1.2}), 0);
  EXPECT_EQ(bytes({0.8, 0.9, 0.9, 1.1, 1.2}), 2 * kept);
  EXPECT_EQ(bytes({0.8, 1.1, 1.1, 1.1, 1.2}), kept / 2);
  EXPECT_EQ(bytes({1.1, 1.1, 1.1, 1.1, 1.2}), kept / 2 - 1);
  EXPECT_EQ(bytes({0.8, 0.8, 0.8, 0.8, 0.8}), kNever);
}

TEST(ChooseSwitches, SaysTheNumbersOnBothSides) {
  const SwitchChoice choice = Choose({0.8, 1.07, 1.1, 1.2, 1.3}, {0.8, 0.9, 1.0, 1.1, 1.2});
  EXPECT_EQ(choice.why[0], "rows are interleaved from 2 panels on: 7 % faster at 2 panels, 20 % slower at 1 panel (measured)");
  EXPECT_NE(choice.why[1].find("as usual: as fast at "), std::string::npos) << choice.why[1];
  EXPECT_NE(choice.why[1].find("10 % slower at "), std::string::npos) << choice.why[1];
  EXPECT_EQ(Choose({0.8, 0.8, 0.8, 0.8, 0.9}).why[0], "rows are never interleaved: 10 % slower at 16 panels (measured)");
}

TEST(SwitchGains, SurviveTheFile) {
  MachineProfile m = FakeCpu(2);
  m.cpu = "fake";
  EXPECT_FALSE(JsonOf(m).contains("switches"));
  m.switches.interleave.points = {{1, 0.875}, {4, 1.0625}};
  m.switches.stream.points = {{1 << 20, 1.1}};
  const nlohmann::json json = JsonOf(m);
  const auto back = MachineFromJson(json, "test");
  ASSERT_TRUE(back) << back.error().Message();
  EXPECT_EQ(JsonOf(*back), json);
  ASSERT_EQ(back->switches.interleave.points.size(), 2u);
  EXPECT_EQ(back->switches.interleave.points[1].y, 1.0625);
  nlohmann::json bad = json;
  bad["switches"]["stream"][0]["speedup"] = -1;
  const auto refused = MachineFromJson(bad, "test");
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().what.find("switches.stream[0].speedup"), std::string::npos) << refused.error().what;
}

// All points run and tell; the context's own switches are as before.
TEST(SwitchPoints, MeasureBothCurves) {
  TestContext t(2);
  t.ctx.switches = {.least_panels = 7, .stream_bytes = 123};
  MachineProfile m;
  for (CalibrationPoint& p : SwitchPoints(m, t.ctx)) {
    p.run();
    p.use(1);
  }
  EXPECT_EQ(t.ctx.switches.least_panels, 7);
  EXPECT_EQ(t.ctx.switches.stream_bytes, 123);
  ASSERT_EQ(m.switches.interleave.points.size(), 5u);
  ASSERT_FALSE(m.switches.stream.empty());
  EXPECT_EQ(m.switches.interleave.points.front().x, 1);
  EXPECT_EQ(m.switches.interleave.points.back().x, 16);
  for (const Curve* curve : {&m.switches.interleave, &m.switches.stream}) {
    double x = 0;
    for (const CurvePoint& p : curve->points) {
      EXPECT_GT(p.x, x);
      EXPECT_GT(p.y, 0.05);
      EXPECT_LT(p.y, 20);
      x = p.x;
    }
  }
}

}  // namespace
}  // namespace moe::test
