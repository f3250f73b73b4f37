#include "moe/planner/plan.h"

#include <gtest/gtest.h>

#include <cmath>

#include "moe/model/presets.h"
#include "moe/planner/step_cost.h"
#include "testing/tiny_model.h"

namespace moe {
namespace {

MachineProfile Builtin(const char* name = "a100-80g") {
  return BuiltInMachine(name).value();
}

PlanOptions Options(std::vector<int64_t> batches = {1, 4, 16, 64, 256, 1024, 4096}) {
  return {.batches = std::move(batches), .dtype = WeightTypes()[1], .routing = {.kind = SweepRouting::kUniform}};
}

Plan PlanOf(const char* preset, const PlanOptions& options, const char* machine = "a100-80g") {
  return MakePlan(preset, PresetConfig(preset).value(), Builtin(machine), options).value();
}

TEST(Plan, RowsArePredictions) {
  const ModelConfig config = PresetConfig("olmoe-1b-7b").value();
  const MachineProfile machine = Builtin();
  const Plan plan = PlanOf("olmoe-1b-7b", Options());
  ASSERT_EQ(plan.rows.size(), 7);
  for (const PlanRow& row : plan.rows) {
    const Step step{Phase::kDecode, row.batch, 64};
    const StepTime moe = Predict({config, DType::kBf16}, step, {machine});
    EXPECT_NEAR(row.model.time.s, moe.s, 1e-9 * moe.s);
    EXPECT_NEAR(row.model.time.distinct_experts, UniformDistinctExperts(64, 8, row.batch), 1e-2);
    EXPECT_NEAR(row.model.tokens_per_s * row.model.time.s, static_cast<double>(row.batch), 1e-6);
    const ModelConfig total = DenseTwin(config, TwinKind::kEqualTotal);
    EXPECT_NEAR(row.speedup_total(), Predict({total, DType::kBf16}, step, {machine}).s / moe.s, 1e-9);
    const ModelConfig active = DenseTwin(config, TwinKind::kEqualActive);
    EXPECT_NEAR(row.speedup_active(), Predict({active, DType::kBf16}, step, {machine}).s / moe.s, 1e-9);
  }
  EXPECT_EQ(plan.experts, 64);
  EXPECT_EQ(plan.top_k, 8);
}

TEST(Plan, QuantisedWeightsReadLess) {
  PlanOptions options = Options({1});
  const Plan wide = PlanOf("olmoe-1b-7b", options);
  options.dtype = WeightTypes()[3];
  ASSERT_EQ(options.dtype.name, "q4_0");
  const Plan narrow = PlanOf("olmoe-1b-7b", options);
  EXPECT_LT(narrow.rows[0].model.time.bytes, 0.35 * wide.rows[0].model.time.bytes);
  EXPECT_LT(narrow.boundaries.b_d, 0.3 * wide.boundaries.b_d);
  EXPECT_LT(narrow.memory.weights, 0.35 * wide.memory.weights);
}

TEST(Plan, CountsMemory) {
  PlanOptions options = Options({1, 8});
  const ModelConfig config = PresetConfig("olmoe-1b-7b").value();
  const Plan plan = PlanOf("olmoe-1b-7b", options);
  const MemoryNeed need = InferenceMemory(config, DType::kBf16, 8, 8, 65);
  EXPECT_NEAR(plan.rows[1].memory_bytes, static_cast<double>(need.total()), 1);
  EXPECT_NEAR(plan.memory.cache_per_sequence * 8, static_cast<double>(need.kv_cache), 1);
  EXPECT_NEAR(plan.memory.weights, static_cast<double>(need.packs + need.masters), 1);
  ASSERT_EQ(plan.memory.types.size(), WeightTypes().size());
  for (size_t i = 1; i < plan.memory.types.size(); ++i) {
    EXPECT_LT(plan.memory.types[i].weights, plan.memory.types[i - 1].weights);
  }
  options.phase = Phase::kTrain;
  const Plan train = PlanOf("olmoe-1b-7b", options);
  EXPECT_NEAR(train.rows[1].memory_bytes, static_cast<double>(TrainingMemory(config, DType::kBf16, 8).total()), 1);
  EXPECT_GT(train.rows[1].model.time.part_s[static_cast<size_t>(StepPart::kOptimizer)], 0);
}

TEST(Plan, KnowsTheValleyOfAWideModel) {
  PlanOptions options = Options();
  options.batches = PlanOptions{}.batches;
  const Plan plan = PlanOf("qwen3-30b-a3b", options);  // 128 experts, top-8
  EXPECT_EQ(plan.rows.front().regime, Regime::kMemory);
  EXPECT_EQ(plan.rows.back().regime, Regime::kCompute);
  ASSERT_EQ(plan.crossover_total.size(), 2);
  EXPECT_TRUE(plan.boundaries.plateau());
  EXPECT_TRUE(plan.plateau.exists());
  EXPECT_GT(plan.plateau.from, plan.crossover_total[0]);
  EXPECT_LT(2 * plan.plateau.from, plan.crossover_total[1]);
  for (const PlanRow& row : plan.rows) {
    const auto batch = static_cast<double>(row.batch);
    const Regime expected = batch < plan.crossover_total[0]   ? Regime::kMemory
                            : batch < plan.crossover_total[1] ? Regime::kMiddle
                                                              : Regime::kCompute;
    EXPECT_EQ(row.regime, expected) << row.batch;
    EXPECT_LT(row.speedup_active(), 1.001) << row.batch;
  }
}

TEST(Plan, BestBatchKeepsItsBounds) {
  PlanOptions options = Options();
  options.max_s = 0.010;
  const Plan fast = PlanOf("olmoe-1b-7b", options);
  ASSERT_TRUE(fast.best);
  EXPECT_EQ(fast.best->batch, *fast.best_batch);
  EXPECT_LE(fast.best->model.time.s, 0.010);
  const PlanOptions one_more = Options({*fast.best_batch + 1});
  EXPECT_GT(PlanOf("olmoe-1b-7b", one_more).rows[0].model.time.s, 0.010);  // the largest that does, listed or not

  options.max_s.reset();
  options.memory_bytes = 20e9;
  const Plan small = PlanOf("olmoe-1b-7b", options);
  ASSERT_TRUE(small.best);
  EXPECT_LE(small.best->memory_bytes, 20e9);
  EXPECT_GT(PlanOf("olmoe-1b-7b", Options({*small.best_batch + 1})).rows[0].memory_bytes, 20e9);

  options.max_s = 1e-6;
  EXPECT_FALSE(PlanOf("olmoe-1b-7b", options).best_batch);
  const Plan free = PlanOf("olmoe-1b-7b", Options());
  EXPECT_EQ(free.best_batch, free.knee);
}

TEST(Plan, TheMachinesMemoryBoundsTheBestBatch) {
  const ModelConfig config = PresetConfig("olmoe-1b-7b").value();
  MachineProfile machine = Builtin();
  machine.memory_bytes = 0;
  PlanOptions options = Options();
  const auto plan = [&] { return MakePlan("m", config, machine, options).value(); };
  const Plan free = plan();
  EXPECT_EQ(free.best_batch, free.knee);
  machine.memory_bytes = 20'000'000'000;
  const Plan small = plan();
  ASSERT_TRUE(small.best);
  EXPECT_LE(small.best->memory_bytes, 20e9);
  options.batches = {*small.best_batch + 1};
  EXPECT_GT(plan().rows[0].memory_bytes, 20e9);
  options = Options(), options.memory_bytes = 18e9;  // what the user says counts
  EXPECT_LT(*plan().best_batch, *small.best_batch);
  options.memory_bytes = 40e9;
  EXPECT_GT(*plan().best_batch, *small.best_batch);
  options.memory_bytes.reset(), options.max_s = 1;
  EXPECT_EQ(plan().best_batch, small.best_batch);

  options = Options(), machine.memory_bytes = 8'000'000'000;
  const Plan none = plan();
  EXPECT_FALSE(none.best_batch);
  ASSERT_TRUE(none.other_type);
  EXPECT_EQ(none.other_type->type, "q8_0");
  EXPECT_TRUE(none.other_type->fits);
  EXPECT_LE(none.other_type->memory_bytes, 8e9);
}

TEST(Plan, SkewedSharesOfExpertsAreRoundedUp) {
  // 128 experts on 3 ranks: 43 on the fullest, whose time counts.
  PlanOptions options = Options({1});
  const double all = PlanOf("qwen3-30b-a3b", options).memory.weights;
  options.parallel = {.ranks = 3, .bytes_per_s = 1e11};
  const Plan plan = PlanOf("qwen3-30b-a3b", options);
  const double experts = 2 * static_cast<double>(plan.parameters.experts);
  EXPECT_NEAR(plan.memory.weights, all - experts * 85 / 128, 1);
  options.phase = Phase::kTrain;
  const double train = PlanOf("qwen3-30b-a3b", options).memory.training_state;
  options.parallel = {};
  EXPECT_NEAR(train, PlanOf("qwen3-30b-a3b", options).memory.training_state - experts / 2 * 20 * 85 / 128, 1);
}

TEST(Plan, RegimesAreWhatBindsTheTwin) {
  PlanOptions options = Options({1, 64, 512, 2048});
  options.parallel = {.ranks = 8, .bytes_per_s = 450e9, .latency_s = 1e-5};
  const Plan plan = PlanOf("mixtral-8x7b", options, "h100-sxm");
  bool compute = false;
  for (const PlanRow& row : plan.rows) {
    if (row.regime == Regime::kMiddle) continue;
    EXPECT_EQ(row.regime == Regime::kMemory, row.dense_total->time.memory_bound()) << row.batch;
    compute = compute || row.regime == Regime::kCompute;
  }
  EXPECT_TRUE(compute);
  EXPECT_NE(plan.rows[2].regime, Regime::kMemory);
}

TEST(Plan, KeepsKeysAndValuesAsAsked) {
  PlanOptions options = Options({64});
  options.context = 1024;
  const Plan wide = PlanOf("olmoe-1b-7b", options);
  options.kv_type = "f16", options.kv_value_bytes = 2;
  const Plan narrow = PlanOf("olmoe-1b-7b", options);
  EXPECT_DOUBLE_EQ(narrow.memory.cache_per_sequence, wide.memory.cache_per_sequence / 2);
  const double cache = 16 * 2.0 * 16 * 128 * 4 * 1025 * 64;
  EXPECT_NEAR(wide.rows[0].model.time.bytes - narrow.rows[0].model.time.bytes, cache / 2, 1e-6 * cache);
  EXPECT_LT(narrow.rows[0].model.time.s, wide.rows[0].model.time.s);
  EXPECT_LT(narrow.rows[0].dense_total->time.s, wide.rows[0].dense_total->time.s);
  options.phase = Phase::kTrain;
  const double train = PlanOf("olmoe-1b-7b", options).rows[0].model.time.s;
  options.kv_value_bytes = 4;
  EXPECT_EQ(train, PlanOf("olmoe-1b-7b", options).rows[0].model.time.s);
}

TEST(Plan, SaysWhatFits) {
  PlanOptions options = Options();
  options.memory_bytes = 8e9;
  const auto plan = [&] { return MakePlan("m", PresetConfig("olmoe-1b-7b").value(), Builtin(), options); };
  ASSERT_FALSE(plan());
  EXPECT_EQ(plan().error().where, "--memory");
  EXPECT_EQ(plan().error().exit_code, 1);
  EXPECT_NE(plan().error().what.find("--dtype q8_0 takes 7."), std::string::npos) << plan().error().what;
  EXPECT_NE(plan().error().what.find("which fits"), std::string::npos) << plan().error().what;
  options.memory_bytes = 1e9;
  EXPECT_NE(plan().error().what.find("mxfp4"), std::string::npos) << plan().error().what;
  EXPECT_NE(plan().error().what.find("does not fit either"), std::string::npos) << plan().error().what;
  options.dtype = WeightTypes().back();
  EXPECT_NE(plan().error().what.find("the smallest there are"), std::string::npos) << plan().error().what;
}

TEST(Plan, OfADenseModel) {
  const Plan plan = MakePlan("tiny", test::TinyDense(), Builtin(),
                             [] {
                               PlanOptions o = Options({1, 4096});
                               o.context = 8;
                               return o;
                             }())
                        .value();
  EXPECT_FALSE(plan.moe());
  EXPECT_FALSE(plan.rows[0].dense_total);
  EXPECT_TRUE(plan.SpeedupTotal().empty());
  EXPECT_TRUE(plan.crossover_total.empty());
  EXPECT_EQ(plan.rows[0].regime, Regime::kMemory);
}

TEST(Plan, RanksShareTheExperts) {
  PlanOptions options = Options({1, 64, 1024});
  const Plan one = PlanOf("qwen3-30b-a3b", options);
  options.parallel = {.ranks = 8, .bytes_per_s = 100e9, .latency_s = 1e-5};
  const Plan eight = PlanOf("qwen3-30b-a3b", options);
  for (size_t i = 0; i < one.rows.size(); ++i) {
    const PlanCell &a = one.rows[i].model, &b = eight.rows[i].model;
    const double bytes = 48.0 * 2 * static_cast<double>(one.rows[i].batch) * 8 * 2048 * 2 * 7 / 8;
    EXPECT_NEAR(b.all_to_all_bytes, bytes, 1e-6 * bytes);
    EXPECT_NEAR(b.all_to_all_s, bytes / 100e9 + 48 * 2 * 1e-5, 1e-9);
    // As much arithmetic, 16 of 128 experts' bytes at most, and as many of them as 8 times the tokens touch.
    EXPECT_NEAR(b.time.flop, a.time.flop, 1e-6 * a.time.flop);
    EXPECT_NEAR(b.time.distinct_experts, UniformDistinctExperts(128, 8, 8 * one.rows[i].batch) / 8, 1e-2);
    EXPECT_NEAR(b.tokens_per_s * b.time.s, 8.0 * static_cast<double>(one.rows[i].batch), 1e-6);
    double sum = b.time.imbalance_s + b.time.sync_s + b.all_to_all_s;
    for (const double s : b.time.part_s) sum += s;
    EXPECT_NEAR(sum, b.time.s, 1e-9 * b.time.s);
  }
  EXPECT_LT(eight.rows[1].model.time.bytes, 0.3 * one.rows[1].model.time.bytes);
  EXPECT_LT(eight.memory.weights, 0.2 * one.memory.weights);
  EXPECT_NEAR(eight.rows[2].dense_total->time.s, one.rows[2].dense_total->time.s, 1e-12);
}

TEST(Plan, SkewReadsFewerExperts) {
  PlanOptions options = Options({16});
  const Plan even = PlanOf("qwen3-30b-a3b", options);
  options.routing = {.kind = SweepRouting::kZipf, .s = 1};
  const Plan skewed = PlanOf("qwen3-30b-a3b", options);
  EXPECT_LT(skewed.rows[0].model.time.distinct_experts, 0.9 * even.rows[0].model.time.distinct_experts);
  EXPECT_GT(skewed.rows[0].speedup_total(), even.rows[0].speedup_total());
}

// Three layers, the second dense. Experts 0 and 1 are chosen for stretches of 50 tokens, 2 and 3 now and then.
std::shared_ptr<const MeasuredRouting> Skewed() {
  RoutedText text{.layers = {{.experts = 4}, {}, {.experts = 4}}, .sequence_begin = {0, 400}};
  for (int32_t t = 0; t < 400; ++t) {
    for (const size_t l : {0u, 2u}) {
      auto& layer = text.layers[l];
      layer.expert.push_back(t / 50 % 2);
      layer.expert.push_back(t % 20 == 0 ? 3 : 2);
      layer.slot_begin.push_back(std::ssize(layer.expert));
    }
  }
  return std::make_shared<const MeasuredRouting>(Summarize(text));
}

ModelConfig WithADenseLayer() {
  ModelConfig config = test::TinyMoe();
  config.layers.insert(config.layers.begin() + 1, {.ffn = FfnKind::kDense, .ffn_width = 32});
  return config;
}

Plan TinyPlan(const PlanOptions& options) {
  return MakePlan("tiny", WithADenseLayer(), Builtin(), options).value();
}

TEST(Plan, TakesMeasuredRouting) {
  PlanOptions options = Options({1, 4, 16, 64});
  options.context = 16;
  for (const Phase phase : {Phase::kDecode, Phase::kPrefill, Phase::kTrain}) {
    options.phase = phase, options.measured = nullptr;
    const Plan uniform = TinyPlan(options);
    options.measured = Skewed();
    const Plan plan = TinyPlan(options);
    for (size_t i = 0; i < plan.rows.size(); ++i) {
      const PlanRow& row = plan.rows[i];
      SCOPED_TRACE(row.batch);
      EXPECT_FALSE(uniform.rows[i].assumed);
      ASSERT_TRUE(row.assumed);
      EXPECT_NEAR(row.assumed->uniform, uniform.rows[i].model.time.distinct_experts, 1e-6);
      EXPECT_NEAR(row.assumed->by_frequency, DistinctExperts(options.measured->chances[0], static_cast<double>(row.batch)),
                  1e-9);
      EXPECT_EQ(row.assumed->runs.has_value(), phase != Phase::kDecode);
      EXPECT_NEAR(row.model.time.distinct_experts, row.assumed->touched(), 1e-6);
      EXPECT_EQ(row.dense_total->time.s, uniform.rows[i].dense_total->time.s);
      if (phase == Phase::kDecode) continue;
      EXPECT_NEAR(row.assumed->touched(), DistinctExpertsOf(*options.measured, {phase, row.batch, 16})[2], 1e-9);
      if (row.batch == 4 || row.batch == 16) {
        EXPECT_LT(row.assumed->touched(), 0.9 * row.assumed->by_frequency);
        EXPECT_LT(row.model.time.bytes, uniform.rows[i].model.time.bytes);
      }
    }
  }
}

TEST(Plan, RanksHaveTheirMeasuredShare) {
  PlanOptions options = Options({1, 8});
  options.context = 16, options.phase = Phase::kPrefill, options.measured = Skewed();
  options.parallel = {.ranks = 2, .bytes_per_s = 1e9};
  const Plan plan = TinyPlan(options);
  for (const PlanRow& row : plan.rows) {
    // Experts 0 and 1 are chosen by every token together, as are 2 and 3.
    EXPECT_NEAR(row.model.time.distinct_experts, DistinctExpertsOf(*options.measured, {options.phase, row.batch, 16}, 2)[0],
                1e-6);
    EXPECT_LE(row.model.time.distinct_experts, 2 + 1e-9);
    EXPECT_NEAR(row.assumed->uniform, UniformDistinctExperts(4, 2, 2 * row.batch) / 2, 1e-9);
  }
}

TEST(Plan, TimesGrowWithTheBatchAndExpertsStayInTheirBounds) {
  for (const char* machine : {"a100-80g", "m2-ultra"}) {
    for (const char* preset : {"olmoe-1b-7b", "mixtral-8x7b"}) {
      for (const Phase phase : {Phase::kDecode, Phase::kPrefill, Phase::kTrain}) {
        PlanOptions options = Options(PlanOptions{}.batches);
        options.phase = phase;
        const Plan plan = PlanOf(preset, options, machine);
        for (size_t i = 0; i < plan.rows.size(); ++i) {
          const StepTime& time = plan.rows[i].model.time;
          const auto batch = static_cast<double>(plan.rows[i].batch);
          const double before = i > 0 ? plan.rows[i - 1].model.time.s : 0;
          EXPECT_GE(time.s, before * (1 - 1e-9)) << preset << plan.rows[i].batch;
          EXPECT_GE(time.distinct_experts, static_cast<double>(plan.top_k) - 1e-6);
          EXPECT_LE(time.distinct_experts,
                    std::min(static_cast<double>(plan.experts), batch * static_cast<double>(plan.top_k)) + 0.01);
        }
      }
    }
  }
}

TEST(Plan, WrongUsageIsNamed) {
  const auto where = [](const ModelConfig& config, const PlanOptions& options) {
    const auto plan = MakePlan("m", config, Builtin(), options);
    return plan ? "" : fmt::format("{} {}", plan.error().where, plan.error().exit_code);
  };
  PlanOptions options = Options({0});
  options.context = 8;
  EXPECT_EQ(where(test::TinyMoe(), options), "--batches 2");
  options.batches = {};
  EXPECT_EQ(where(test::TinyMoe(), options), "--batches 2");
  options.batches = {1}, options.context = 32;
  EXPECT_EQ(where(test::TinyMoe(), options), "--context 2");
  options.phase = Phase::kPrefill;
  EXPECT_EQ(where(test::TinyMoe(), options), "");
  options.context = 0;
  EXPECT_EQ(where(test::TinyMoe(), options), "--context 2");
  options.context = 8, options.parallel = {.ranks = 5, .bytes_per_s = 1e9};
  EXPECT_EQ(where(test::TinyMoe(), options), "--ranks 2");
  EXPECT_EQ(where(test::TinyDense(), options), "--ranks 2");
}

}  // namespace
}  // namespace moe
