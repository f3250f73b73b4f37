#include "moe/planner/sweep.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "moe/base/cpu_info.h"
#include "moe/base/rng.h"
#include "testing/test_context.h"
#include "testing/tiny_model.h"

namespace moe {
namespace {

// Three rounds of everything, and no more.
SweepOptions Quick(std::vector<int64_t> batches) {
  return {.batches = std::move(batches), .context = 5, .seconds = 0, .probe_bytes = 1 << 20};
}

ModelConfig ManyExperts() {
  ModelConfig config = test::TinyMoe();
  for (LayerSpec& layer : config.layers) layer.moe.router.num_experts = 16;
  config.layers.push_back({.ffn = FfnKind::kDense, .ffn_width = 32});
  return config;
}

TEST(MeasureSweep, MeasuresAModelBesideItsTwins) {
  test::TestContext machine(2);
  const ModelConfig config = ManyExperts();
  for (const DType format : {DType::kF32, DType::kBf16}) {
    SweepOptions options = Quick({1, 3, 64});
    options.format = format;
    const auto report = MeasureSweep(config, nullptr, options, {}, machine.ctx);
    ASSERT_TRUE(report.has_value()) << report.error().Message();
    ASSERT_EQ(report->subjects.size(), 3);
    EXPECT_EQ(report->subjects[0].role, SweepRole::kModel);
    EXPECT_EQ(report->subjects[1].role, SweepRole::kDenseActive);
    EXPECT_EQ(report->subjects[2].role, SweepRole::kDenseTotal);
    EXPECT_EQ(report->subjects[1].config.layers[0].ffn_width, 2 * 16);
    EXPECT_EQ(report->subjects[2].config.layers[0].ffn_width, 16 * 16);
    EXPECT_FALSE(report->interrupted);
    ASSERT_EQ(report->rows.size(), 3);
    for (size_t r = 0; r < 3; ++r) {
      const SweepRow& row = report->rows[r];
      EXPECT_EQ(row.batch, options.batches[r]);
      EXPECT_EQ(row.rounds, 3);
      EXPECT_GT(row.read_bytes_per_s, 0);
      EXPECT_LE(row.read_min, row.read_bytes_per_s);
      EXPECT_GE(row.read_max, row.read_bytes_per_s);
      ASSERT_EQ(row.cells.size(), 3);
      for (size_t i = 0; i < 3; ++i) {
        const SweepCell& cell = row.cells[i];
        EXPECT_GT(cell.s_per_step, 0);
        EXPECT_LE(cell.s_min, cell.s_per_step);
        EXPECT_GE(cell.s_max, cell.s_per_step);
        EXPECT_GE(cell.steps, row.rounds);
        const auto cost = DecodeCost(report->subjects[i].config, format, {row.batch, 5}, cell.distinct_experts).total();
        EXPECT_EQ(cell.cost.bytes, cost.bytes);
        EXPECT_EQ(cell.cost.flop, cost.flop);
      }
      const SweepCell& moe = row.cells[0];
      ASSERT_EQ(moe.distinct_experts.size(), 3);
      for (size_t l = 0; l < 2; ++l) {
        EXPECT_GE(moe.distinct_experts[l], 2);
        EXPECT_LE(moe.distinct_experts[l], std::min<double>(16, 2.0 * static_cast<double>(row.batch)));
      }
      EXPECT_EQ(moe.distinct_experts[2], 0);  // a dense layer
      EXPECT_EQ(moe.mean_distinct_experts(config), (moe.distinct_experts[0] + moe.distinct_experts[1]) / 2);
      EXPECT_EQ(row.cells[1].mean_distinct_experts(report->subjects[1].config), 0);
      EXPECT_DOUBLE_EQ(*report->Speedup(row, SweepRole::kDenseTotal), row.cells[2].s_per_step / moe.s_per_step);
      EXPECT_DOUBLE_EQ(*report->Speedup(row, SweepRole::kDenseActive), row.cells[1].s_per_step / moe.s_per_step);
    }
    // One token chooses k experts; 64 different ones cannot all want the same two.
    EXPECT_EQ(report->rows[0].cells[0].mean_distinct_experts(config), 2);
    EXPECT_GT(report->rows[2].cells[0].mean_distinct_experts(config), 4);
  }
}

// What a step reads must not be what the step before left in the caches: every token chooses anew, whatever past it has.
TEST(MeasureSweep, RandomWeightsUseAllExpertsInTime) {
  test::TestContext machine(2);
  ModelConfig config = test::TinyMoe();
  config.hidden = 128, config.num_heads = 4, config.num_kv_heads = 4, config.head_width = 32, config.vocab_size = 1000;
  config.context = 128;
  for (LayerSpec& layer : config.layers) layer.moe.router.num_experts = 32, layer.moe.router.top_k = 4;
  for (const uint64_t seed : {1, 2}) {
    SweepOptions options = Quick({1});
    options.context = 64, options.seconds = 0.6, options.seed = seed, options.against = {};
    auto report = MeasureSweep(config, nullptr, options, {}, machine.ctx);
    while (report && report->rows[0].cells[0].steps < 40 && options.seconds < 30) {  // a busy machine takes longer
      options.seconds *= 2;
      report = MeasureSweep(config, nullptr, options, {}, machine.ctx);
    }
    ASSERT_TRUE(report.has_value()) << report.error().Message();
    const SweepCell& cell = report->rows[0].cells[0];
    ASSERT_EQ(cell.experts_used.size(), config.layers.size());
    ASSERT_GE(cell.steps, 40);
    for (const int64_t used : cell.experts_used) EXPECT_GE(used, 31) << "in " << cell.steps << " steps";
  }
}

TEST(MeasureSweep, TokensDifferFromStepToStep) {
  test::TestContext machine(2);
  ModelConfig config = ManyExperts();
  config.layers.assign(24, config.layers[0]);
  const auto report = MeasureSweep(config, nullptr, Quick({2}), {}, machine.ctx);
  ASSERT_TRUE(report.has_value());
  // Two tokens touch 2, 3 or 4 experts of a layer. If every step had the same two, every layer's mean would be a whole number.
  const auto& distinct = report->rows[0].cells[0].distinct_experts;
  EXPECT_TRUE(std::any_of(distinct.begin(), distinct.end(), [](double d) { return d != std::round(d); }));
}

TEST(MeasureSweep, UsesALoadedModelAsItIs) {
  test::TestContext machine(2);
  const ModelConfig config = test::TinyMoe();
  Model model(config, DType::kF32, /*training=*/false);
  model.Initialize(1, machine.ctx);
  // All logits equal: every token takes experts 0 and 1, which no random router would.
  for (Parameter& parameter : model.parameters().all()) {
    if (parameter.name.find("router") == std::string::npos) continue;
    std::fill(parameter.value.span().begin(), parameter.value.span().end(), 0.0f);
  }
  model.Repack(machine.ctx);
  SweepOptions options = Quick({1, 9});
  options.format = DType::kF32;
  const auto report = MeasureSweep(config, &model, options, {}, machine.ctx);
  ASSERT_TRUE(report.has_value());
  EXPECT_FALSE(report->subjects[0].random_weights);
  EXPECT_EQ(report->subjects[0].weight_bytes, model.PackedStorageBytes());
  EXPECT_TRUE(report->subjects[1].random_weights);
  EXPECT_EQ(report->rows[1].cells[0].mean_distinct_experts(config), 2);
}

TEST(MeasureSweep, MeasuresOnlyTheTwinsThatAreWanted) {
  test::TestContext machine(2);
  SweepOptions options = Quick({2});
  options.against = {TwinKind::kEqualTotal};
  const auto one = MeasureSweep(test::TinyMoe(), nullptr, options, {}, machine.ctx);
  ASSERT_TRUE(one.has_value());
  ASSERT_EQ(one->subjects.size(), 2);
  EXPECT_EQ(one->subjects[1].role, SweepRole::kDenseTotal);
  EXPECT_TRUE(one->Speedup(one->rows[0], SweepRole::kDenseTotal).has_value());
  EXPECT_FALSE(one->Speedup(one->rows[0], SweepRole::kDenseActive).has_value());

  const auto dense = MeasureSweep(test::TinyDense(), nullptr, Quick({2}), {}, machine.ctx);
  ASSERT_TRUE(dense.has_value());
  EXPECT_EQ(dense->subjects.size(), 1);
  EXPECT_FALSE(dense->Speedup(dense->rows[0], SweepRole::kDenseTotal).has_value());
}

// Cores that are moved away and back by chance: looks at regular intervals could fall on the same moments of every round.
struct MovingCores {
  double leave = 0, come = 0;  // chances between two looks
  Rng rng{1};
  bool away = false;
  double operator()(ThreadPool&) {
    if (rng.Uniform() < (away ? come : leave)) away = !away;
    return away ? 170e-9 : 50e-9;
  }
};

TEST(MeasureSweep, TakesTurnsAgainDuringWhichTheCoresWereMoved) {
  test::TestContext machine(2);
  SweepOptions options = Quick({1, 4});
  options.seconds = 30;  // for all that a turn may take and be taken again
  options.handover = MovingCores{.leave = 0.15, .come = 0.9};
  const auto stop = [&, turns = 0](const SweepProgress&) mutable { return ++turns < 400; };
  options.handover_s = 50e-9;
  const auto report = MeasureSweep(test::TinyMoe(), nullptr, options, stop, machine.ctx);
  ASSERT_TRUE(report.has_value());
  ASSERT_EQ(report->rows.size(), 2);
  for (const SweepRow& row : report->rows) {
    EXPECT_GT(row.turns_again, 0);
    EXPECT_GE(row.rounds_used, 3);
    EXPECT_EQ(row.handover_s, 50e-9);
    // Forgotten turns are in no round: a turn has at most 32 steps.
    for (const SweepCell& cell : row.cells) EXPECT_LE(cell.steps, 32 * (row.rounds + 1));
  }
  // Where any placement will do, nothing is done again; those unlike the others are left out.
  options.handover_s = 0, options.handover = MovingCores{.leave = 0.01, .come = 0.03};
  const auto any = MeasureSweep(
      test::TinyMoe(), nullptr, options, [turns = 0](const SweepProgress&) mutable { return ++turns < 400; }, machine.ctx);
  ASSERT_TRUE(any.has_value());
  for (const SweepRow& row : any->rows) {
    EXPECT_EQ(row.turns_again, 0);
    EXPECT_LT(row.rounds_used, row.rounds);
    EXPECT_EQ(row.handover_s, 50e-9);
  }
}

// A placement that never comes is waited for no longer than the sweep may take, and then done without.
TEST(MeasureSweep, MeasuresWhereverTheCoresLieAtLast) {
  test::TestContext machine(2);
  SweepOptions options = Quick({1, 4});
  options.seconds = 0.2;
  options.handover = [](ThreadPool&) { return 170e-9; };
  int calls = 0;
  const auto count = [&](const SweepProgress&) { return ++calls > 0; };
  for (const double wanted : {0.0, 50e-9}) {
    options.handover_s = wanted;
    calls = 0;
    const auto report = MeasureSweep(test::TinyMoe(), nullptr, options, count, machine.ctx);
    ASSERT_TRUE(report.has_value());
    ASSERT_EQ(report->rows.size(), 2);
    int64_t turns = 0;
    for (const SweepRow& row : report->rows) {
      EXPECT_GE(row.rounds, 3);
      EXPECT_GE(row.rounds_used, 3);
      EXPECT_EQ(row.handover_s, 170e-9);
      EXPECT_EQ(row.turns_again, 0);
      turns += 3 * row.rounds;
    }
    if (wanted > 0) {
      EXPECT_GT(calls, turns);  // it was asked while waiting, too
    } else {
      EXPECT_EQ(calls, turns);
    }
  }
}

// Every batch has a round before any has all of its own, so that a stopped sweep knows something of all.
TEST(MeasureSweep, TakesBatchesInTurns) {
  test::TestContext machine(2);
  std::vector<int64_t> order;
  const auto note = [&](const SweepProgress& progress) {
    if (order.empty() || order.back() != progress.batch) order.push_back(progress.batch);
    return order.size() < 4;
  };
  const auto report = MeasureSweep(test::TinyMoe(), nullptr, Quick({1, 2, 256}), note, machine.ctx);
  ASSERT_TRUE(report.has_value());
  EXPECT_TRUE(report->interrupted);
  ASSERT_EQ(order.size(), 4);
  EXPECT_EQ(std::vector<int64_t>(order.begin(), order.begin() + 3), (std::vector<int64_t>{1, 2, 256}));
  ASSERT_EQ(report->rows.size(), 3);
  for (const SweepRow& row : report->rows) EXPECT_GE(row.rounds, 1);
}

TEST(MeasureSweep, KeepsFinishedRowsWhenStopped) {
  test::TestContext machine(2);
  double last = 0;
  const auto stop_at_8 = [&](const SweepProgress& progress) {
    EXPECT_GE(progress.fraction, last);
    EXPECT_LE(progress.fraction, 1);
    last = progress.fraction;
    return progress.batch < 8;
  };
  const auto report = MeasureSweep(test::TinyMoe(), nullptr, Quick({1, 4, 8, 16}), stop_at_8, machine.ctx);
  ASSERT_TRUE(report.has_value());
  EXPECT_TRUE(report->interrupted);
  ASSERT_EQ(report->rows.size(), 2);
  EXPECT_EQ(report->rows[1].batch, 4);
}

TEST(CountSweepMemory, SharesWhatCanBeShared) {
  const ModelConfig config = test::TinyMoe();
  SweepOptions options = Quick({1, 7});
  const auto packs = [&](const ModelConfig& shape) { return InferenceMemory(shape, options.format, 7, 7, 6).packs; };
  ModelConfig shape = config;
  shape.context = 6;
  const int64_t moe = packs(shape), active = packs(DenseTwin(shape, TwinKind::kEqualActive)),
                total = packs(DenseTwin(shape, TwinKind::kEqualTotal));
  const SweepMemory random = CountSweepMemory(config, SweepWeights::kRandom, options);
  EXPECT_EQ(random.weights, std::max({moe, active, total}));
  EXPECT_LT(random.weights, moe + active + total);
  EXPECT_EQ(random.kv_cache, KvCache::Bytes(config, 7, 6));  // one cache
  EXPECT_EQ(random.probe_buffer, 1 << 20);
  EXPECT_GT(random.activations, 0);
  EXPECT_EQ(random.total(), random.weights + random.embeddings + random.kv_cache + random.activations + random.probe_buffer);
  EXPECT_EQ(CountSweepMemory(config, SweepWeights::kToLoad, options).weights, packs(config) + std::max(active, total));
  options.against = {};
  EXPECT_EQ(CountSweepMemory(config, SweepWeights::kToLoad, options).weights, packs(config));
}

TEST(CheckSweep, RefusesWhatDoesNotFitWithTheFigures) {
  const ModelConfig config = test::TinyMoe();
  SweepOptions options = Quick({1, 2, 64});
  const int64_t need = CountSweepMemory(config, SweepWeights::kRandom, options).total();
  options.memory_bytes = need;
  EXPECT_TRUE(CheckSweep(config, SweepWeights::kRandom, options).has_value());
  options.memory_bytes = need - 1;
  const Status status = CheckSweep(config, SweepWeights::kRandom, options);
  ASSERT_FALSE(status.has_value());
  EXPECT_EQ(status.error().exit_code, 1);
  for (const char* part : {"weights", "KV cache", "activations", "bandwidth probe", "--batches up to 32 would fit"}) {
    EXPECT_NE(status.error().what.find(part), std::string::npos) << status.error().what;
  }
  SweepOptions wide = options;
  wide.format = DType::kF32, wide.memory_bytes = need;
  EXPECT_NE(CheckSweep(config, SweepWeights::kRandom, wide).error().what.find("--dtype bf16 would fit"), std::string::npos);
  // Too little for one sequence, but enough for half of the layers.
  SweepOptions one = options;
  one.batches = {1};
  one.memory_bytes = CountSweepMemory(config, SweepWeights::kRandom, one).total() - 1;
  EXPECT_NE(CheckSweep(config, SweepWeights::kRandom, one).error().what.find("--layers 1 would fit"), std::string::npos);
  one.memory_bytes = 1;
  EXPECT_EQ(CheckSweep(config, SweepWeights::kRandom, one).error().what.find("would fit"), std::string::npos);
  test::TestContext machine(2);
  EXPECT_FALSE(MeasureSweep(config, nullptr, one, {}, machine.ctx).has_value());
}

TEST(CheckSweep, DoesNotAskTwiceForWhatIsLoaded) {
  const ModelConfig config = test::TinyMoe();
  SweepOptions options = Quick({1});
  // An allowance is for all of it, loaded or not.
  options.memory_bytes = CountSweepMemory(config, SweepWeights::kToLoad, options).total();
  EXPECT_TRUE(CheckSweep(config, SweepWeights::kLoaded, options).has_value());
  --options.memory_bytes;
  EXPECT_FALSE(CheckSweep(config, SweepWeights::kLoaded, options).has_value());
  // What is free does for the rest and half of the model: enough once it is loaded, too little before.
  ModelConfig large = config;
  large.hidden = 4096, large.vocab_size = 1 << 17;
  options.memory_bytes = -1;
  options.against = {};
  options.probe_bytes = 1;
  const SweepMemory need = CountSweepMemory(large, SweepWeights::kToLoad, options);
  options.probe_bytes = AvailableMemoryBytes() - need.total() + (need.weights + need.embeddings) / 2;
  if (options.probe_bytes < 1) GTEST_SKIP() << "too little free memory";
  EXPECT_FALSE(CheckSweep(large, SweepWeights::kToLoad, options).has_value());
  EXPECT_TRUE(CheckSweep(large, SweepWeights::kLoaded, options).has_value());
}

TEST(CheckSweep, SurvivesShapesThatOverflow) {
  ModelConfig config = test::TinyMoe();
  config.hidden = 1 << 24;
  config.layers[0].moe.router.num_experts = int64_t{1} << 40;
  config.layers[0].moe.expert_width = int64_t{1} << 40;
  const Status status = CheckSweep(config, SweepWeights::kRandom, Quick({1}));
  ASSERT_FALSE(status.has_value());
  EXPECT_EQ(status.error().where, "memory");
}

TEST(CheckSweep, RefusesImpossibleSteps) {
  const ModelConfig config = test::TinyMoe();
  SweepOptions options = Quick({0, 1});
  EXPECT_EQ(CheckSweep(config, SweepWeights::kRandom, options).error().exit_code, 2);
  options = Quick({});
  EXPECT_EQ(CheckSweep(config, SweepWeights::kRandom, options).error().exit_code, 2);
  options = Quick({1});
  options.context = config.context;
  EXPECT_EQ(CheckSweep(config, SweepWeights::kRandom, options).error().exit_code, 2);
  options.context = config.context - 1;
  EXPECT_TRUE(CheckSweep(config, SweepWeights::kRandom, options).has_value());
  options.context = -1;
  EXPECT_EQ(CheckSweep(config, SweepWeights::kRandom, options).error().exit_code, 2);
}

}  // namespace
}  // namespace moe
