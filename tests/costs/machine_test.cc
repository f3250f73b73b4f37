#include "moe/costs/machine.h"

#include <gtest/gtest.h>

#include <set>

namespace moe {
namespace {

TEST(BuiltInMachine, HasTheFiguresOfTheDataSheets) {
  struct Expected {
    const char* name;
    double bytes_per_s, bf16;
  };
  for (const Expected& expected : {Expected{"a100-80g", 2039e9, 312e12},
                                   {"h100-sxm", 3350e9, 989.5e12},
                                   {"dgx-spark", 273e9, 125e12},
                                   {"m2-ultra", 800e9, 27.2e12}}) {
    SCOPED_TRACE(expected.name);
    const auto machine = BuiltInMachine(expected.name);
    ASSERT_TRUE(machine.has_value());
    EXPECT_EQ(machine->name, expected.name);
    EXPECT_EQ(machine->memory_bytes_per_s(), expected.bytes_per_s);
    EXPECT_EQ(machine->peak_flop_per_s(DType::kBf16), expected.bf16);
    EXPECT_EQ(machine->peak_flop_per_s(DType::kF32), machine->peak_f32);
  }
}

TEST(BuiltInMachine, SaysWhereEveryFigureIsFrom) {
  ASSERT_EQ(MachineNames().size(), 4u);
  for (const std::string_view name : MachineNames()) {
    SCOPED_TRACE(name);
    const MachineProfile m = BuiltInMachine(std::string(name)).value();
    for (const char* figure : {"memory", "bandwidth", "f32", "bf16", "int8", "barrier_s", "step_s"}) {
      EXPECT_NE(m.source.find(figure), std::string::npos) << figure << ": " << m.source;
    }
    EXPECT_EQ(m.source.find('\n'), std::string::npos);
    EXPECT_FALSE(m.cpu.empty() || m.isa.empty());
    EXPECT_GT(m.memory_bytes, 0);
    EXPECT_GT(m.barrier_s, 0);
    EXPECT_GT(m.step_s, 0);
    EXPECT_NE(m.source.find("soft"), std::string::npos) << m.source;
    EXPECT_GT(m.peak_int8, 0);
  }
}

TEST(BuiltInMachine, CacheIsFasterThanMemory) {
  for (const std::string_view name : MachineNames()) {
    const MachineProfile m = BuiltInMachine(std::string(name)).value();
    const std::vector<CurvePoint>& points = m.weights_bytes_per_s.points;
    for (size_t i = 1; i < points.size(); ++i) {
      EXPECT_GT(points[i].x, points[i - 1].x) << name;
      EXPECT_LE(points[i].y, points[i - 1].y) << name;
    }
  }
}

// A model of two layers must not pay for thirty: what is charged whatever the depth is little.
TEST(BuiltInMachine, FixedTimeIsOfLayersRatherThanOfSteps) {
  constexpr double kPiecesOfALayer = 5;  // of one sequence, a dense model; see StepOps
  for (const std::string_view name : MachineNames()) {
    const MachineProfile m = BuiltInMachine(std::string(name)).value();
    EXPECT_LT(m.step_s, 5 * kPiecesOfALayer * m.barrier_s) << name;
  }
  // What Llama-2-7B takes on an A100 besides bytes: 32 layers of 5 pieces, and the head.
  const MachineProfile a100 = BuiltInMachine("a100-80g").value();
  EXPECT_NEAR(a100.step_s + (32 * kPiecesOfALayer + 1) * a100.barrier_s, 3.0e-3, 0.1e-3);
}

TEST(BuiltInMachine, AnUnknownNameListsTheNamesNearestFirst) {
  const auto machine = BuiltInMachine("h100-sxl");
  ASSERT_FALSE(machine.has_value());
  EXPECT_EQ(machine.error().exit_code, 2);
  const std::string error = machine.error().Message();
  EXPECT_NE(error.find("h100-sxl"), std::string::npos) << error;
  std::set<size_t> places;
  for (const std::string_view name : MachineNames()) {
    ASSERT_NE(error.find(name), std::string::npos) << error;
    places.insert(error.find(name));
  }
  EXPECT_EQ(*places.begin(), error.find("h100-sxm")) << error;
  EXPECT_EQ(error.find('\n'), std::string::npos);
  // What came from a terminal is not sent back to it as it is, nor at any length.
  const std::string odd = BuiltInMachine("\x1b[2J" + std::string(5000, 'x')).error().Message();
  EXPECT_EQ(odd.find('\x1b'), std::string::npos);
  EXPECT_LT(odd.size(), 5000u);
}

MachineProfile Bare() {
  MachineProfile m;
  m.weights_bytes_per_s.points = {{1e6, 50e9}, {1e9, 10e9}};
  m.peak_f32 = 1e12;
  return m;
}

TEST(Complete, FillsFromBandwidthAndPeak) {
  MachineProfile m = Bare();
  Complete(m);
  EXPECT_EQ(m.peak_bf16, 1e12);
  EXPECT_EQ(m.read_bytes_per_s, 10e9);
  EXPECT_EQ(m.rmw_bytes_per_s, 10e9);
  EXPECT_EQ(m.adamw_bytes_per_s, 10e9);
  for (const DType format : {DType::kF32, DType::kBf16}) {
    for (int kind = 0; kind < kNumProductKinds; ++kind) {
      const ProductCost& cost = m.product(format, static_cast<ProductKind>(kind));
      // One panel of 32 outputs: 64 operations a row and input.
      EXPECT_DOUBLE_EQ(cost.step_s.TimeAt(10), 10 * 64 / 1e12);
      EXPECT_TRUE(cost.panel_s.empty());
    }
    EXPECT_EQ(m.stream(format, ProductKind::kDown).efficiency, 1);
    EXPECT_EQ(m.stream(format, ProductKind::kWeightGrad).efficiency, 1);
    EXPECT_DOUBLE_EQ(m.attention_of(format).pair_s.At(7), 4 / 1e12);
  }
  for (int op = 0; op < kNumRowOps; ++op) {
    const auto row_op = static_cast<RowOp>(op);
    EXPECT_DOUBLE_EQ(m.row_op_s[static_cast<size_t>(op)], BytesPerValue(row_op) / 50e9) << Name(row_op);
    EXPECT_GT(BytesPerValue(row_op), 0) << Name(row_op);
  }
}

TEST(Complete, KeepsWhatIsThere) {
  MachineProfile m = Bare();
  m.peak_bf16 = 2e12, m.read_bytes_per_s = 9e9, m.rmw_bytes_per_s = 8e9, m.adamw_bytes_per_s = 7e9;
  m.products = {{.format = DType::kBf16, .kind = ProductKind::kDown, .step_s = {{{1, 1.0}}}, .panel_s = {{{1, 2.0}}}}};
  m.streams = {{.format = DType::kF32, .efficiency = 0.5}, {.format = DType::kBf16, .gradients = true, .efficiency = 1.5}};
  m.attention = {{.format = DType::kF32, .pair_s = {{{1, 3.0}}}, .backward_pair_s = {{{1, 4.0}}}}};
  m.row_op_s[2] = 5;
  Complete(m);
  EXPECT_EQ(m.peak_bf16, 2e12);
  EXPECT_EQ(m.read_bytes_per_s, 9e9);
  EXPECT_EQ(m.rmw_bytes_per_s, 8e9);
  EXPECT_EQ(m.adamw_bytes_per_s, 7e9);
  EXPECT_EQ(m.product(DType::kBf16, ProductKind::kDown).step_s.At(1), 1);
  EXPECT_DOUBLE_EQ(m.product(DType::kBf16, ProductKind::kGateUp).step_s.At(1), 64 / 2e12);
  EXPECT_EQ(m.stream(DType::kF32, ProductKind::kLinear).efficiency, 0.5);
  EXPECT_EQ(m.stream(DType::kF32, ProductKind::kWeightGrad).efficiency, 1);
  EXPECT_EQ(m.stream(DType::kBf16, ProductKind::kGateUp).efficiency, 1);
  EXPECT_EQ(m.stream(DType::kBf16, ProductKind::kWeightGrad).efficiency, 1.5);
  EXPECT_EQ(m.attention_of(DType::kF32).pair_s.At(1), 3);
  EXPECT_EQ(m.row_op_s[2], 5);
  const size_t products = m.products.size(), streams = m.streams.size(), attention = m.attention.size();
  Complete(m);  // nothing is missing any more
  EXPECT_EQ(m.products.size(), products);
  EXPECT_EQ(m.streams.size(), streams);
  EXPECT_EQ(m.attention.size(), attention);
}

TEST(RowOp, NamesAreDifferent) {
  std::set<std::string_view> names;
  for (int op = 0; op < kNumRowOps; ++op) names.insert(Name(static_cast<RowOp>(op)));
  EXPECT_EQ(names.size(), static_cast<size_t>(kNumRowOps));
  EXPECT_EQ(names.count(""), 0u);
}

TEST(RoutingCost, CountsCallsTokensExpertsAndSlots) {
  const RoutingCost cost{.call_s = 1, .token_s = 10, .expert_s = 100, .slot_s = 1000};
  EXPECT_EQ(cost.At(0, 8, 2), 1);
  EXPECT_EQ(cost.At(3, 8, 2), 1 + 3 * (10 + 800 + 2000));
}

}  // namespace
}  // namespace moe
