#include "moe/planner/plan_report.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "moe/model/presets.h"
#include "moe/planner/plan_textbook.h"
#include "testing/tiny_model.h"

namespace moe {
namespace {

Plan PlanOf(const ModelConfig& config, PlanOptions options = {}) {
  options.dtype = WeightTypes()[1];
  options.context = 8;
  options.routing.kind = SweepRouting::kUniform;
  return MakePlan("a model", config, BuiltInMachine("a100-80g").value(), options).value();
}

bool Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(PlanJson, HasTheStableFields) {
  const Plan plan = PlanOf(PresetConfig("qwen3-30b-a3b").value());
  const nlohmann::json json = PlanJson(plan);
  EXPECT_EQ(json["model"], "a model");
  EXPECT_EQ(json["phase"], "decode");
  EXPECT_EQ(json["dtype"], "bf16");
  EXPECT_EQ(json["machine"]["name"], "a100-80g");
  ASSERT_EQ(json["rows"].size(), plan.rows.size());
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    const auto& row = json["rows"][i];
    EXPECT_EQ(row["batch"], plan.rows[i].batch);
    EXPECT_DOUBLE_EQ(row["speedup_total"], plan.rows[i].speedup_total());
    EXPECT_DOUBLE_EQ(row["speedup_active"], plan.rows[i].speedup_active());
    for (const char* cell : {"moe", "dense_total", "dense_active"}) {
      double sum = 0;
      for (const char* part :
           {"attention", "router", "experts", "imbalance_wait", "sync", "optimizer", "other", "all_to_all"}) {
        sum += row[cell]["s_by_part"][part].get<double>();
      }
      EXPECT_NEAR(sum, row[cell]["s_per_step"].get<double>(), 1e-9 * sum);
      EXPECT_GT(row[cell]["bytes"].get<double>(), 0);
      EXPECT_GT(row[cell]["flop"].get<double>(), 0);
      EXPECT_TRUE(row[cell]["bound"].is_string());
    }
    EXPECT_EQ(row["moe"]["regime"], std::string(Name(plan.rows[i].regime)));
    EXPECT_DOUBLE_EQ(row["moe"]["distinct_experts"], plan.rows[i].model.time.distinct_experts);
  }
  EXPECT_DOUBLE_EQ(json["b_sat"], plan.boundaries.b_sat);
  EXPECT_DOUBLE_EQ(json["b_d"], plan.boundaries.b_d);
  EXPECT_DOUBLE_EQ(json["b_m"], plan.boundaries.b_m);
  EXPECT_EQ(json["plateau"], true);
  EXPECT_EQ(json["crossover_total"].size(), 2);
  EXPECT_TRUE(json["crossover_active"].is_array());
  EXPECT_TRUE(json["best_batch"].is_null());
  EXPECT_EQ(json["bytes"]["weights"].size(), 5);
}

TEST(PlanJson, OfADenseModel) {
  const nlohmann::json json = PlanJson(PlanOf(test::TinyDense()));
  EXPECT_TRUE(json["rows"][0].contains("dense"));
  EXPECT_FALSE(json["rows"][0].contains("moe"));
  EXPECT_FALSE(json["rows"][0].contains("speedup_total"));
  EXPECT_FALSE(json.contains("b_sat"));
}

TEST(PlanAdvice, RestsOnItsNumbers) {
  const Plan plan = PlanOf(PresetConfig("qwen3-30b-a3b").value());
  const auto advice = PlanAdvice(plan);
  EXPECT_LE(advice.size(), 8);
  ASSERT_GE(advice.size(), 6);
  EXPECT_TRUE(Has(advice[0], "At batch 1 the MoE reads 8 of 128 experts"));
  EXPECT_TRUE(Has(advice[0], fmt::format("{:.3g} times faster than", plan.rows[0].speedup_total())));
  EXPECT_TRUE(Has(advice[1], fmt::format("From batch {:.0f} to {:.0f} ", plan.crossover_total[0], plan.crossover_total[1])));
  EXPECT_TRUE(Has(advice[2], "There is a plateau")) << advice[2];
  EXPECT_TRUE(Has(advice[3], fmt::format("From batch {:.0f} on", plan.crossover_total[1])));
  EXPECT_TRUE(Has(advice[4], "equal active size"));
  EXPECT_TRUE(Has(advice[5], "Take a dense model"));
}

TEST(PlanAdvice, OfOtherShapes) {
  // Batches that are all small: nothing is lost, and arithmetic does not decide.
  const auto small = PlanAdvice(PlanOf(PresetConfig("qwen3-30b-a3b").value(), {.batches = {1, 2, 4}}));
  EXPECT_TRUE(Has(small[1], "never goes below 1.25"));
  EXPECT_TRUE(Has(small[2], "There is no plateau"));
  EXPECT_TRUE(Has(small[3], "does not decide yet"));
  EXPECT_EQ(PlanAdvice(PlanOf(PresetConfig("qwen3-30b-a3b").value(), {.batches = {8}})).size(), 3);
  EXPECT_TRUE(Has(PlanAdvice(PlanOf(test::TinyDense()))[0], "This model is dense"));
}

TEST(PlanText, HasAllItsParts) {
  const Plan plan = PlanOf(PresetConfig("qwen3-30b-a3b").value(), {.max_s = 0.02});
  const std::string text = PlanText(plan, {.width = 80, .unicode = true});
  for (const char* part :
       {"Plan of one decode step", "a model: 30.5 B parameters, 3.04 B active", "a100-80g", "data sheet", "q8_0",
        "KV cache of a sequence", "training state", "speed-up over", "●", "memory ─", "B_sat", "B_d", "B_m", "plateau: yes",
        "best batch  ", "of at most 20.0 ms per step", "- At batch 1 the MoE reads"}) {
    EXPECT_TRUE(Has(text, part)) << part << "\n" << text;
  }
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);)
    EXPECT_LE(std::ranges::count_if(line, [](char c) { return (c & 0xC0) != 0x80; }), 112) << line;
  const std::string plain = PlanText(plan, {.width = 60, .unicode = false});
  EXPECT_TRUE(std::ranges::all_of(plain, [](char c) { return static_cast<unsigned char>(c) < 0x80; }));
}

// Every token of the first half chooses experts 0 to 7 of 128, of the second half 8 to 15.
Plan Measured(Phase phase, int64_t tokens = 400) {
  const ModelConfig config = PresetConfig("qwen3-30b-a3b").value();
  RoutedText text{.layers = {}, .sequence_begin = {0, tokens}};
  RoutedText::Layer layer{.experts = 128};
  for (int64_t t = 0; t < tokens; ++t) {
    for (int32_t i = 0; i < 8; ++i) layer.expert.push_back(i + (t < tokens / 2 ? 0 : 8));
    layer.slot_begin.push_back(std::ssize(layer.expert));
  }
  text.layers.assign(config.layers.size(), layer);
  MeasuredRouting measured = Summarize(text);
  measured.files = {"a.txt", "b.txt"};
  return PlanOf(
      config,
      {.phase = phase, .batches = {1, 8, 64, 4096}, .measured = std::make_shared<const MeasuredRouting>(std::move(measured))});
}

TEST(PlanText, SaysHowRoutingWasMeasured) {
  const std::string decode = PlanText(Measured(Phase::kDecode), {});
  for (const char* part :
       {"routing measured on 400 tokens of a.txt, b.txt", "distinct experts of a layer at        1      8",
        "  uniform: E (1 - (1 - k/E)^B)      8.0   51.6", "  as often as the text has them     8.0   15.9   16.0   16.0",
        "the text has 400 tokens: in larger steps rare experts are missing", "is bound by arithmetic",
        "95 % of the experts are read, if routing were uniform"}) {
    EXPECT_TRUE(Has(decode, part)) << part << "\n" << decode;
  }
  EXPECT_FALSE(Has(decode, "runs of"));
  EXPECT_FALSE(Has(decode, "uniform routing\n"));
  const std::string prefill = PlanText(Measured(Phase::kPrefill), {});
  EXPECT_TRUE(Has(prefill, "  runs of the text                  8.0    8.1   ")) << prefill;
  EXPECT_FALSE(Has(prefill, "are made of several"));
  const std::string few = PlanText(Measured(Phase::kPrefill, 6), {});
  EXPECT_TRUE(Has(few, "runs of 8 tokens are made of several of 6: the text has too few that are longer")) << few;
  EXPECT_FALSE(Has(PlanText(PlanOf(PresetConfig("qwen3-30b-a3b").value()), {}), "distinct experts of a layer"));
}

TEST(PlanAdvice, NamesWhatTheTextChanges) {
  const auto advice = PlanAdvice(Measured(Phase::kDecode));
  EXPECT_LE(advice.size(), 8);
  EXPECT_TRUE(Has(advice.back(),
                  "On this text a step of batch 4096 touches 16 experts of a layer, 88 % fewer than the 128 of uniform "
                  "routing: some are chosen more"))
      << advice.back();
  // Little skew, much likeness of neighbours.
  RoutedText text{.layers = {{.experts = 4}, {.experts = 4}}, .sequence_begin = {0, 400}};
  for (auto& layer : text.layers) {
    for (int32_t t = 0; t < 400; ++t) {
      layer.expert.insert(layer.expert.end(), {t / 100 % 2 * 2, t / 100 % 2 * 2 + 1});
      layer.slot_begin.push_back(std::ssize(layer.expert));
    }
  }
  const auto alike = PlanAdvice(PlanOf(
      test::TinyMoe(),
      {.phase = Phase::kPrefill, .batches = {1, 8}, .measured = std::make_shared<const MeasuredRouting>(Summarize(text))}));
  EXPECT_TRUE(Has(alike.back(), "tokens that follow each other choose alike")) << alike.back();
}

TEST(PlanJson, OfMeasuredRouting) {
  const Plan plan = Measured(Phase::kPrefill);
  const nlohmann::json json = PlanJson(plan);
  EXPECT_EQ(json["routing"], (nlohmann::json{{"kind", "measured"}, {"tokens", 400}, {"files", {"a.txt", "b.txt"}}}));
  const auto& moe = json["rows"][1]["moe"];
  EXPECT_DOUBLE_EQ(moe["distinct_experts_uniform"], plan.rows[1].assumed->uniform);
  EXPECT_DOUBLE_EQ(moe["distinct_experts_by_frequency"], plan.rows[1].assumed->by_frequency);
  EXPECT_LT(moe["distinct_experts"].get<double>(), moe["distinct_experts_by_frequency"].get<double>());
  const nlohmann::json uniform = PlanJson(PlanOf(PresetConfig("qwen3-30b-a3b").value()));
  EXPECT_EQ(uniform["routing"], "uniform");
  EXPECT_FALSE(uniform["rows"][1]["moe"].contains("distinct_experts_uniform"));
}

TEST(PlanText, OfADenseModel) {
  const std::string text = PlanText(PlanOf(test::TinyDense()), {});
  EXPECT_TRUE(Has(text, "This model is dense"));
  EXPECT_FALSE(Has(text, "speed-up"));
  EXPECT_FALSE(Has(text, "B_sat"));
}

TEST(PlanText, SaysWhichMemoryBoundsTheBestBatch) {
  MachineProfile machine = BuiltInMachine("a100-80g").value();
  const ModelConfig config = PresetConfig("qwen3-30b-a3b").value();
  PlanOptions options{.context = 8, .dtype = WeightTypes()[1]};
  const auto text = [&](int64_t bytes) {
    machine.memory_bytes = bytes;
    return PlanText(MakePlan("a model", config, machine, options).value(), {});
  };
  EXPECT_TRUE(Has(text(0), "best batch  4096 or more: --max-ms")) << text(0);
  EXPECT_TRUE(Has(text(64'000'000'000), ", within the machine's 64.0 GB: ")) << text(64'000'000'000);
  const std::string none = text(40'000'000'000);
  EXPECT_TRUE(Has(none, "best batch  none: batch 1 takes 6")) << none;
  EXPECT_TRUE(Has(none, ", the machine has 40.0 GB; --dtype q8_0 takes 3")) << none;
  EXPECT_TRUE(Has(text(1'000'000'000), ", the least of all")) << text(1'000'000'000);
  EXPECT_TRUE(Has(none, "KV cache  f32, as our engine keeps it; those of GPUs keep 16 bits"));
  options.kv_type = "bf16", options.kv_value_bytes = 2;
  EXPECT_TRUE(Has(text(0), "KV cache  bf16\n")) << text(0);
}

TEST(ValleyOf, BandsOfARowThatFallsOutOfOrder) {
  Plan plan = PlanOf(PresetConfig("qwen3-30b-a3b").value());
  plan.rows[0].regime = Regime::kCompute;  // no crossing there: half way between the batches, and the others stay
  const TerminalPlot plot = ValleyOf(plan);
  ASSERT_EQ(plot.bands.size(), 4);
  EXPECT_NEAR(plot.bands[0].to, std::sqrt(2.0), 1e-9);
  EXPECT_NEAR(plot.bands[1].to, plan.crossover_total[0], 1e-9);
  EXPECT_NEAR(plot.bands[2].to, plan.crossover_total[1], 1e-9);
}

TEST(ValleyOf, BandsMeetAtTheCrossings) {
  const Plan plan = PlanOf(PresetConfig("qwen3-30b-a3b").value());
  const TerminalPlot plot = ValleyOf(plan);
  ASSERT_EQ(plot.bands.size(), 3);
  EXPECT_EQ(plot.bands[0].name, "memory");
  EXPECT_EQ(plot.bands[1].from, plan.crossover_total[0]);
  EXPECT_EQ(plot.bands[1].to, plan.crossover_total[1]);
  EXPECT_EQ(plot.bands[2].to, 4096);
  EXPECT_EQ(plot.series.size(), 2);
}

// --- the textbook's sum ---

Textbook Toy(TextbookOptions options) {
  return MakeTextbook(options).value();
}

TEST(Textbook, ArithmeticAlone) {
  const Textbook t = Toy({.machine = {.flop_per_s = 100e12}, .flop_per_token = {10e9, 4e9}, .batches = {1, 2}});
  EXPECT_DOUBLE_EQ(t.models[0].compute_tokens_per_s, 10000);
  EXPECT_DOUBLE_EQ(t.models[1].compute_tokens_per_s, 25000);
  EXPECT_DOUBLE_EQ(t.Speedup(1, 0), 2.5);
  const std::string text = TextbookText(t, {});
  for (const char* part : {"10,000 tokens/s", "25,000 tokens/s", "2.5 times"}) EXPECT_TRUE(Has(text, part)) << text;
  EXPECT_FALSE(Has(text, "bandwidth"));
  EXPECT_DOUBLE_EQ(TextbookJson(t)["models"][1]["tokens_per_s"], 25000);
  EXPECT_DOUBLE_EQ(TextbookJson(t)["models"][1]["speedup"], 2.5);
}

TEST(Textbook, ThreeRegimes) {
  const Textbook t = Toy({.machine = {100e12, 2e12},
                          .flop_per_token = {},
                          .parameters = {70e9, 235e9},
                          .active = {70e9, 22e9},
                          .batches = {1, 40, 4096}});
  const ToyPlan& moe = t.models[1];
  EXPECT_NEAR(moe.batch_1_s, 22e9 * 2 / 2e12, 1e-9);
  EXPECT_NEAR(moe.read_all_s, 235e9 * 2 / 2e12, 1e-9);
  EXPECT_NEAR(moe.b_d, 50, 1e-9);
  EXPECT_NEAR(moe.b_m, 235.0 / 22 * 50, 1e-6);
  EXPECT_NEAR(moe.s_per_step[0], moe.batch_1_s, 1e-9);
  EXPECT_NEAR(t.Speedup(1, 0), 70.0 / 22, 1e-9);
  EXPECT_NEAR(t.Speedup(1, 1), 70.0 / 235, 0.01);
  EXPECT_NEAR(t.Speedup(1, 2), 70.0 / 22, 1e-9);
  const std::string text = TextbookText(t, {});
  for (const char* part :
       {"3.18 times as fast at batch 1", "middle, batch 32 to 50", "0.298 times", "from 534 on: 3.18 times"}) {
    EXPECT_TRUE(Has(text, part)) << part << "\n" << text;
  }
  EXPECT_EQ(TextbookJson(t)["rows"].size(), 3);
}

TEST(Textbook, WrongUsageIsNamed) {
  const auto where = [](const TextbookOptions& options) {
    const auto t = MakeTextbook(options);
    return t ? "" : fmt::format("{} {}", t.error().where, t.error().exit_code);
  };
  EXPECT_EQ(where({.machine = {1e12}}), "--flops-per-token 2");
  EXPECT_EQ(where({.machine = {1e12}, .flop_per_token = {1}, .parameters = {1, 2}}), "--parameters 2");
  EXPECT_EQ(where({.machine = {1e12}, .flop_per_token = {}, .parameters = {1}, .active = {1, 2}}), "--active 2");
  EXPECT_EQ(where({.machine = {1e12}, .flop_per_token = {}, .parameters = {1}, .active = {2}}), "--active 2");
  EXPECT_EQ(where({.machine = {1e12, 1e9}, .flop_per_token = {1}}), "--bandwidth 2");
  EXPECT_EQ(where({.machine = {1e12, 1e9}, .flop_per_token = {}, .parameters = {1}, .batches = {1}}), "");
}

}  // namespace
}  // namespace moe
