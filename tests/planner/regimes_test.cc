#include "moe/planner/regimes.h"

#include <gtest/gtest.h>

#include <cmath>

#include "testing/tiny_model.h"

namespace moe {
namespace {

using Batches = std::vector<int64_t>;
using Ratios = std::vector<double>;

std::string Letters(const Ratios& ratio) {
  std::string out;
  for (const Regime regime : RegimesOf(ratio)) out += Name(regime).substr(0, 2);
  return out;
}

TEST(Regimes, OfAValley) {
  EXPECT_EQ(Letters({5, 2, 1.25, 1, 1.2, 2}), "mememimimico");
  EXPECT_EQ(Letters({5, 3, 2}), "mememe");           // still falling
  EXPECT_EQ(Letters({2, 3, 5}), "cococo");           // only rises
  EXPECT_EQ(Letters({5, 1.5, 1.4, 3}), "mememeco");  // no middle; the least belongs to what is left of it
  EXPECT_EQ(Letters({0.9, 1.0}), "mimi");
  EXPECT_EQ(Letters({}), "");
}

TEST(Regimes, WhatBindsTheTwinSaysWhatTheMoeHasLess) {
  EXPECT_EQ(RegimeOf(kGain, true), Regime::kMiddle);
  EXPECT_EQ(RegimeOf(0.5, false), Regime::kMiddle);
  EXPECT_EQ(RegimeOf(1.3, true), Regime::kMemory);
  EXPECT_EQ(RegimeOf(1.3, false), Regime::kCompute);
}

TEST(Bands, MeetAtTheCrossingOrHalfWay) {
  const std::vector<std::string> names = {"memory", "memory", "middle", "compute"};
  const auto bands = BandsOf(Batches{1, 2, 4, 16}, Ratios{3, 2, 1, 1.1}, names);
  ASSERT_EQ(bands.size(), 3);
  EXPECT_EQ(bands[0].from, 1);
  EXPECT_NEAR(bands[0].to, 2 * std::pow(2, 0.75), 1e-9);  // 1.25 between 2 and 1
  EXPECT_EQ(bands[1].from, bands[0].to);
  EXPECT_NEAR(bands[1].to, 8, 1e-9);  // does not cross
  EXPECT_EQ(bands[2].to, 16);
  EXPECT_EQ(bands[2].name, "compute");
  EXPECT_TRUE(BandsOf(Batches{}, Ratios{}, {}).empty());
}

TEST(Boundaries, AreTheClosedForms) {
  MachineProfile machine{.weights_bytes_per_s = {{{1e6, 9e11}, {1e9, 1e11}}}, .peak_f32 = 1e12, .peak_bf16 = 4e12};
  Complete(machine);
  const ModelConfig config = test::TinyMoe();  // 4 experts, top-2
  const Boundaries b = BoundariesOf(config, machine, DType::kBf16, 2, Phase::kDecode);
  EXPECT_NEAR(b.gamma, 4e12, 1e3);
  EXPECT_DOUBLE_EQ(b.beta, 1e11);  // from memory, not the cache
  EXPECT_NEAR(b.b_sat, 2 * std::log(20.0), 1e-9);
  EXPECT_NEAR(b.b_d, 4e12 * 2 / (2 * 1e11), 1e-6);
  EXPECT_NEAR(b.b_m, 2 * b.b_d, 1e-6);
  EXPECT_TRUE(b.plateau());
  EXPECT_NEAR(BoundariesOf(config, machine, DType::kF32, 4, Phase::kPrefill).b_d, 20, 1e-6);
  EXPECT_FALSE(BoundariesOf(config, machine, DType::kBf16, 0.1, Phase::kDecode).plateau());  // B_d 2 < B_sat 6
  const Boundaries dense = BoundariesOf(test::TinyDense(), machine, DType::kBf16, 2, Phase::kDecode);
  EXPECT_EQ(dense.b_sat, 0);
  EXPECT_EQ(dense.b_m, 0);
  EXPECT_FALSE(dense.plateau());
}

// 48 bytes for 6 multiply-adds and additions where an inferring step has 2 for 2.
TEST(Boundaries, OfTrainingCountGradientsAndTheOptimizer) {
  MachineProfile machine{.weights_bytes_per_s = {{{1e9, 1e11}}}, .peak_f32 = 1e12, .peak_bf16 = 4e12};
  Complete(machine);
  const ModelConfig config = test::TinyMoe();
  const Boundaries infer = BoundariesOf(config, machine, DType::kBf16, 2, Phase::kDecode);
  const Boundaries train = BoundariesOf(config, machine, DType::kBf16, 2, Phase::kTrain);
  EXPECT_NEAR(train.b_d / infer.b_d, (2 + 2 + 8 + 36) / 2.0 / 3, 1e-9);
  EXPECT_NEAR(train.b_m / train.b_d, 2, 1e-9);
  EXPECT_NE(MeaningOfBd(Phase::kTrain), MeaningOfBd(Phase::kPrefill));
}

TEST(Plateau, IsTheFlattestOctave) {
  const Plateau flat = PlateauOf(Batches{1, 2, 4, 8, 16}, Ratios{4, 2, 1.05, 0.95, 3});
  ASSERT_TRUE(flat.exists());
  EXPECT_NEAR(flat.from, 4, 1e-6);
  EXPECT_NEAR(*flat.deviation, 0.05, 1e-9);
  // Within 1 at one batch only.
  EXPECT_FALSE(PlateauOf(Batches{1, 2, 4}, Ratios{4, 1, 4}).exists());
  // Far below 1 is no plateau either.
  EXPECT_FALSE(PlateauOf(Batches{1, 2, 4, 8}, Ratios{0.5, 0.5, 0.5, 0.5}).exists());
  // A point inside the octave counts.
  EXPECT_NEAR(*PlateauOf(Batches{4, 6, 8}, Ratios{1, 1.6, 1}).deviation, 0.6, 1e-9);
  // Between batches: from 1.5 at 1 to 1 at 4, then flat to 6: the octave 3 to 6.
  const Plateau between = PlateauOf(Batches{1, 4, 6}, Ratios{1.5, 1, 1});
  EXPECT_NEAR(between.from, 3, 0.05);
  EXPECT_NEAR(*between.deviation, 0.5 * (1 - std::log(3.0) / std::log(4.0)), 0.01);
}

TEST(Plateau, NeedsAnOctave) {
  EXPECT_FALSE(PlateauOf(Batches{4, 7}, Ratios{1, 1}).deviation);
  EXPECT_FALSE(PlateauOf(Batches{4}, Ratios{1}).exists());
  EXPECT_FALSE(PlateauOf(Batches{}, Ratios{}).exists());
  EXPECT_TRUE(PlateauOf(Batches{4, 8}, Ratios{1, 1}).exists());
}

TEST(ActiveCrossings, LeastAndBack) {
  const auto at = ActiveCrossings(Batches{1, 4, 16, 64, 256}, Ratios{1, 0.6, 0.5, 0.7, 0.9});
  ASSERT_EQ(at.size(), 2);
  EXPECT_NEAR(std::log(at[0] / 16) / std::log(4), -1.0 / 6, 1e-9);  // left of the least, where the curve is flatter
  EXPECT_NEAR(at[1], 128, 1e-9);
  EXPECT_NEAR(ActiveCrossings(Batches{2, 4, 8}, Ratios{0.5, 0.4, 0.5})[0], 4, 1e-9);
  EXPECT_NEAR(ActiveCrossings(Batches{1, 4, 8}, Ratios{0.7, 0.4, 0.5})[0], 3.73213, 1e-5);  // steps of two sizes
  EXPECT_NEAR(ActiveCrossings(Batches{1, 4, 16, 64}, Ratios{0.5, 0.4, 0.4, 0.5})[0], 8, 1e-9);
  EXPECT_TRUE(ActiveCrossings(Batches{1, 4}, Ratios{1, 0.5}).empty());
  EXPECT_EQ(ActiveCrossings(Batches{1, 4, 16}, Ratios{1, 0.85, 0.9}).size(), 1);
  EXPECT_TRUE(ActiveCrossings(Batches{}, Ratios{}).empty());
}

TEST(Knee, IsWhereDoublingStopsPaying) {
  EXPECT_EQ(KneeOf(Batches{1, 2, 4, 8}, Ratios{10, 19, 20, 21}), 2);
  EXPECT_EQ(KneeOf(Batches{1, 2, 4, 8}, Ratios{10, 10.5, 20, 21}), 4);  // a flat start does not count
  EXPECT_EQ(KneeOf(Batches{1, 2, 4}, Ratios{10, 10, 10}), 1);
  EXPECT_EQ(KneeOf(Batches{1, 2, 4}, Ratios{10, 15, 20}), std::nullopt);
  EXPECT_EQ(KneeOf(Batches{1, 16}, Ratios{10, 13}), 1);  // 7 % for each of four doublings
  EXPECT_EQ(KneeOf(Batches{1}, Ratios{10}), std::nullopt);
}

}  // namespace
}  // namespace moe
