#pragma once
// Training runs of a tiny recipe in a folder of their own.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "moe/train/run.h"
#include "tests/train/tiny_run.h"

namespace moe::test {

// A preset by its own numbers: nothing of the tiny recipe's router, and experts enough for every preset's groups and top_k.
inline constexpr int64_t kPresetExperts = 24;
inline std::vector<std::string> PresetSets(std::string_view name) {
  return {fmt::format("router.policy={}", name), fmt::format("model.experts={}", kPresetExperts),
          "model.top_k=", "router.capacity_factor="};
}

// Experts of every kind, with and without drops and bf16; layers of different experts, with a shared one behind a gate.
inline std::vector<std::vector<std::string>> ModelsOfManyKinds() {
  return {
      {"model.expert_groups=1 silu 16, 1 relu2 32 plain, 1 gelu 16 plain deep, 1 zero, 1 copy, 1 constant", "model.experts=6",
       "model.expert_width=", "router.capacity_factor=0"},
      {"model.expert_groups=[\"2 gelu_tanh 16\", \"1 zero\", \"1 constant\"]",
       "model.expert_width=", "train.skip_idle_experts=true", "router.normalize_after_drop=true", "train.dtype=bf16"},
      {"model.layer_experts=[3, 5]", "model.layer_top_k=[2, 3]", "model.experts=", "model.top_k=", "model.shared_experts=1",
       "model.shared_expert_gate=true"},
  };
}

class RunTest : public testing::Test {
 protected:
  RunTest() { WriteTinyRun(dir_); }

  std::string Folder(const std::string& name) const { return dir_ / name; }

  Result<RunSummary> Run(const std::string& folder, bool resume = false, RecipeOverrides overrides = {},
                         RunObserver observer = {}, const KernelTable* table = SupportedKernelTables().front()) {
    ThreadPool pool(1);
    Arena arena;
    ExecContext ctx{pool, arena, *table};
    return RunTraining(
        {.recipe = dir_ / "r.toml", .overrides = std::move(overrides), .folder = Folder(folder), .resume = resume}, observer,
        ctx);
  }
  // Runs and expects an error whose place and words these are.
  void ExpectError(const Result<RunSummary>& result, const std::string& where, const std::string& part) {
    ASSERT_FALSE(result) << "expected: " << part;
    EXPECT_EQ(result.error().where, where);
    EXPECT_NE(result.error().what.find(part), std::string::npos) << result.error().Message();
    EXPECT_EQ(result.error().Message().find('\n'), std::string::npos);
  }
  // Stops once that many steps are done.
  static RunObserver StopAfter(int64_t steps) {
    auto done = std::make_shared<int64_t>(0);
    return {.on_step = [=](const StepMetrics& metrics) { *done = metrics.step; },
            .stop_requested = [=] { return *done >= steps; }};
  }

  TempDir dir_;
};

}  // namespace moe::test
