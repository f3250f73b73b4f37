#include "moe/planner/predict.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "moe/model/presets.h"
#include "moe/planner/step_cost.h"
#include "tests/planner/step_fixture.h"

namespace moe {
namespace {

std::vector<MachineProfile> Machines() {
  std::vector<MachineProfile> machines = {test::FakeCpu(1), test::FakeCpu(2), test::FakeCpu(16)};
  for (const std::string_view name : MachineNames()) machines.push_back(BuiltInMachine(std::string(name)).value());
  return machines;
}

constexpr Phase kPhases[] = {Phase::kDecode, Phase::kPrefill, Phase::kTrain};
constexpr int64_t kContexts[] = {0, 1, 64, 1000, 4096};

class Prediction : public testing::TestWithParam<test::StepShape> {
 protected:
  const test::StepShape& shape = GetParam();
};
INSTANTIATE_TEST_SUITE_P(Shapes, Prediction, testing::ValuesIn(test::StepShapes()), [](const auto& p) { return p.param.name; });

// A larger batch never takes less time: every batch for one machine, and steps of a quarter for the others.
TEST_P(Prediction, TimeNeverFallsWithTheBatch) {
  size_t turn = 0;
  for (const MachineProfile& machine : Machines()) {
    for (const Phase phase : kPhases) {
      const int64_t context = kContexts[turn++ % std::size(kContexts)];
      const bool fine = machine.threads == 2;
      double last = 0;
      int64_t before = 0, falls = 0;
      for (int64_t batch = 1; batch <= 4096; batch += fine ? 1 : 1 + batch / 4) {
        const double s = Predict(shape.model(), {phase, batch, context}, {machine}).s;
        // Sums of a few hundred terms.
        if (s < last * (1 - 1e-12) && falls++ == 0) {
          ADD_FAILURE() << machine.name << ", " << machine.threads << " threads, " << Name(phase) << ", context " << context
                        << ": batch " << before << " " << last << " s, batch " << batch << " " << s << " s";
        }
        last = s, before = batch;
      }
      EXPECT_EQ(falls, 0);
    }
  }
}

TEST_P(Prediction, PartsAndWaitsSumToTheStep) {
  for (const MachineProfile& machine : Machines()) {
    for (const Phase phase : kPhases) {
      for (const int64_t batch : {1, 3, 32, 700}) {
        SCOPED_TRACE(testing::Message() << machine.name << " " << Name(phase) << " " << batch);
        const StepTime t = Predict(shape.model(), {phase, batch, 64}, {machine});
        const double parts = std::accumulate(t.part_s.begin(), t.part_s.end(), 0.0);
        EXPECT_NEAR(parts + t.imbalance_s + t.sync_s, t.s, 1e-12 * t.s);
        for (const double s : t.part_s) EXPECT_GE(s, -1e-12 * t.s);
        EXPECT_GE(t.imbalance_s, 0);
        EXPECT_GE(t.sync_s, machine.step_s);
        EXPECT_GT(t.bytes, 0);
        EXPECT_GT(t.flop, 0);
        EXPECT_EQ(t.part_s[static_cast<size_t>(StepPart::kOptimizer)] > 0, phase == Phase::kTrain);
        EXPECT_EQ(t.part_s[static_cast<size_t>(StepPart::kRouter)] > 0, shape.config.has_experts());
        EXPECT_EQ(t.distinct_experts > 0, shape.config.has_experts());
        // Overlap never costs more than doing one after the other, and saves no more than the lesser of each op.
        EXPECT_LE(t.s, (t.memory_s + t.compute_s + t.sync_s) * (1 + 1e-12));
        EXPECT_GE(t.s, std::max(t.memory_s, t.compute_s) * (1 - 1e-12));
      }
    }
  }
}

TEST_P(Prediction, DoesNotDependOnWhatWasAskedBefore) {
  const MachineProfile machine = test::FakeCpu(2);
  std::vector<int64_t> batches = {1, 2, 5, 8, 64, 100, 1000};
  std::vector<StepTime> in_order;
  for (const int64_t batch : batches) in_order.push_back(Predict(shape.model(), {Phase::kDecode, batch, 64}, {machine}));
  std::vector<size_t> order(batches.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::shuffle(order.begin(), order.end(), std::mt19937(7));
  for (const size_t i : order) {
    const StepTime again = Predict(shape.model(), {Phase::kDecode, batches[i], 64}, {machine});
    EXPECT_EQ(again.s, in_order[i].s);
    EXPECT_EQ(again.part_s, in_order[i].part_s);
    EXPECT_EQ(again.bytes, in_order[i].bytes);
  }
}

TEST_P(Prediction, DoesNotDependOnTheOrderOfExpertsNorMuchOnThatOfLayers) {
  const MachineProfile machine = test::FakeCpu(2);
  test::StepShape turned = shape;
  std::ranges::reverse(turned.config.layers);
  StepModel model{.config = shape.config, .format = shape.format, .chances = shape.chances()};
  const StepTime t = Predict(model, {Phase::kDecode, 50, 64}, {machine});
  for (ExpertChances& chances : model.chances) std::ranges::reverse(chances.p);
  EXPECT_EQ(Predict(model, {Phase::kDecode, 50, 64}, {machine}).s, t.s);
  EXPECT_NEAR(Predict(turned.model(), {Phase::kDecode, 50, 64}, {machine}).s, t.s, 1e-12 * t.s);  // of rounding
  // Uniform chances by name and by default.
  if (shape.zipf == 0) {
    EXPECT_NEAR(Predict(shape.model(), {Phase::kDecode, 50, 64}, {machine}).s, t.s, 1e-9 * t.s);
  }
}

// Every rate times `faster`, every fixed cost divided by it.
MachineProfile Faster(MachineProfile m, double faster) {
  const auto rate = [&](Curve& curve) {
    for (CurvePoint& p : curve.points) p.y *= faster;
  };
  const auto time = [&](Curve& curve) {
    for (CurvePoint& p : curve.points) p.y /= faster;
  };
  rate(m.weights_bytes_per_s);
  for (double* r : {&m.read_bytes_per_s, &m.rmw_bytes_per_s, &m.adamw_bytes_per_s, &m.adamw_wide_bytes_per_s, &m.peak_f32,
                    &m.peak_bf16, &m.peak_int8, &m.pace_flop_per_s}) {
    *r *= faster;
  }
  for (ProductCost& c : m.products) time(c.step_s), time(c.panel_s);
  for (StreamCost& c : m.streams) c.matrix_s /= faster, c.list_s /= faster;
  for (AttentionCost& c : m.attention) time(c.pair_s), time(c.backward_pair_s), c.row_s /= faster;
  for (double& s : m.row_op_s) s /= faster;
  for (RoutingCost* c : {&m.routing, &m.routing_backward}) {
    for (double* s : {&c->call_s, &c->token_s, &c->expert_s, &c->slot_s}) *s /= faster;
  }
  m.barrier_s /= faster, m.step_s /= faster;
  return m;
}

TEST_P(Prediction, OfAMachineTwiceAsFastIsHalfTheTime) {
  for (const MachineProfile& machine : Machines()) {
    const MachineProfile twice = Faster(machine, 2), in_ms = Faster(machine, 1e-3);
    for (const Phase phase : kPhases) {
      for (const int64_t batch : {1, 20, 333}) {
        const Step step{phase, batch, 100};
        const StepTime t = Predict(shape.model(), step, {machine});
        // Powers of two change no digit; another unit of time changes the last ones.
        EXPECT_EQ(Predict(shape.model(), step, {twice}).s, t.s / 2) << machine.name << " " << Name(phase) << " " << batch;
        EXPECT_NEAR(Predict(shape.model(), step, {in_ms}).s, t.s * 1e3, 1e-12 * t.s * 1e3);
        // The whole machine slowed down is that machine, but for what the step itself costs.
        const Conditions slow{.machine = machine, .memory = 0.5, .compute = 0.5};
        EXPECT_NEAR(Predict(shape.model(), step, slow).s - machine.step_s, 2 * (t.s - machine.step_s), 1e-9 * t.s);
      }
    }
  }
}

TEST_P(Prediction, SlowerMemoryOrCoresNeverHelp) {
  for (const MachineProfile& machine : Machines()) {
    for (const Phase phase : kPhases) {
      for (const int64_t batch : {1, 2, 16, 100, 2000}) {
        SCOPED_TRACE(testing::Message() << machine.name << " " << Name(phase) << " " << batch);
        const Step step{phase, batch, 300};
        const StepTime now = Predict(shape.model(), step, {machine});
        double last = now.s;
        for (const double memory : {0.9, 0.5, 0.1}) {
          const StepTime t = Predict(shape.model(), step, {.machine = machine, .memory = memory});
          EXPECT_GE(t.s, last * (1 - 1e-12));
          for (size_t p = 0; p < t.part_s.size(); ++p) {
            // What experts wait for each other may move into or out of their part.
            const bool experts = p == static_cast<size_t>(StepPart::kExperts);
            EXPECT_GE(t.part_s[p] + (experts ? t.imbalance_s : 0),
                      (now.part_s[p] + (experts ? now.imbalance_s : 0)) * (1 - 1e-9));
          }
          last = t.s;
        }
        EXPECT_GE(Predict(shape.model(), step, {.machine = machine, .compute = 0.5}).s, now.s * (1 - 1e-12));
      }
    }
  }
}

TEST_P(Prediction, GrowsWithTheContext) {
  for (const MachineProfile& machine : Machines()) {
    double last = 0;
    for (const int64_t context : {0, 1, 64, 500, 4096}) {
      const double s = Predict(shape.model(), {Phase::kDecode, 8, context}, {machine}).s;
      EXPECT_GT(s, last) << machine.name << " " << context;
      last = s;
    }
  }
}

TEST_P(Prediction, CountsImbalanceOnlyWhereRowsDiffer) {
  bool alike = true;
  for (const LayerSpec& layer : shape.config.layers) {
    alike = alike && (layer.ffn == FfnKind::kDense || layer.moe.router.top_k == layer.moe.router.num_experts);
  }
  for (const int64_t batch : {3, 512}) {
    const StepTime t = Predict(shape.model(), {Phase::kPrefill, batch, 512}, {test::FakeCpu(2)});
    if (alike) {
      EXPECT_LE(t.imbalance_s, 1e-12 * t.s);
    }
    EXPECT_LT(t.imbalance_s, 0.5 * t.s);
  }
}

// The twin's count is the model's own in the unit claimed, but for what only an MoE has (routers, gates on shared experts) and
// half a step of 16 widths in each layer.
TEST_P(Prediction, TwinsHaveTheParametersOfTheUnitClaimed) {
  const ModelConfig& c = shape.config;
  const ParameterCount own = CountParameters(c);
  double moe_only = 0, half_steps = 0;
  for (const LayerSpec& layer : c.layers) {
    if (layer.ffn != FfnKind::kMoe) continue;
    moe_only += layer.moe.shared_gate ? static_cast<double>(c.hidden) : 0;
    half_steps += 8 * 3 * static_cast<double>(c.hidden);
  }
  moe_only += static_cast<double>(own.router);
  const ParameterCount total = CountParameters(DenseTwin(c, TwinKind::kEqualTotal));
  const ParameterCount active = CountParameters(DenseTwin(c, TwinKind::kEqualActive));
  EXPECT_NEAR(static_cast<double>(total.total), static_cast<double>(own.total) - moe_only, half_steps);
  EXPECT_NEAR(static_cast<double>(active.active), static_cast<double>(own.active) - moe_only, half_steps + 1);  // k/E of them
  EXPECT_EQ(total.router + total.experts + total.shared_experts, 0);
  EXPECT_EQ(active.attention, own.attention);
  // SwiGLU experts of a multiple of 16 leave nothing to round.
  const bool alike = std::ranges::all_of(c.layers, [](const LayerSpec& layer) { return layer.moe.groups.empty(); });
  if (alike) {
    EXPECT_EQ(static_cast<double>(total.total), static_cast<double>(own.total) - moe_only);
    EXPECT_EQ(static_cast<double>(active.active), static_cast<double>(own.active) - moe_only);
  }
  if (!c.has_experts()) {
    EXPECT_EQ(total.total, own.total);
  }
}

// With every expert read and arithmetic alone to wait for, an MoE does k/E of its twin's.
TEST(PredictionOfTwins, GoFromTheBytesOfAllToTheArithmeticOfTheChosen) {
  ModelConfig c{.vocab_size = 32, .hidden = 1024, .num_heads = 2, .num_kv_heads = 1, .head_width = 32, .context = 4096};
  c.layers.assign(2, test::MoeOf(16, 2, 512));
  const MachineProfile machine = BuiltInMachine("h100-sxm").value();
  MachineProfile bare = machine;
  bare.barrier_s = bare.step_s = 0;
  bare.row_op_s = {};
  const ModelConfig twin = DenseTwin(c, TwinKind::kEqualTotal);
  const auto ratio = [&](int64_t batch) {
    return Predict({.config = twin}, {Phase::kDecode, batch, 0}, {bare}).s /
           Predict({.config = c}, {Phase::kDecode, batch, 0}, {bare}).s;
  };
  EXPECT_GT(ratio(1), 6);  // of 16 experts 2 are read; the attention is alike
  EXPECT_LT(ratio(1), 8);
  EXPECT_NEAR(ratio(40), 1, 0.15);  // 15.9 of them
  EXPECT_GT(ratio(1 << 16), 2);
}

TEST(Prediction, WideRowsTakeTheOptimizerLonger) {
  MachineProfile machine = test::FakeCpu(2);
  ModelConfig config = DenseTwin(PresetConfig("wide-64x8").value(), TwinKind::kEqualTotal);
  const auto optimizer_s = [&] {
    return Predict({.config = config}, {Phase::kTrain, 16, 64}, {machine}).part_s[static_cast<size_t>(StepPart::kOptimizer)];
  };
  machine.adamw_wide_bytes_per_s = machine.adamw_bytes_per_s;
  const double alike = optimizer_s();
  machine.adamw_wide_bytes_per_s = machine.adamw_bytes_per_s / 2;
  const double values = ValuesOfWideRows(config);
  ASSERT_GT(values, 0);
  EXPECT_NEAR(optimizer_s() - alike, values * (8 * 4 + 2 * 2) / machine.adamw_bytes_per_s, 1e-9);
}

}  // namespace
}  // namespace moe
