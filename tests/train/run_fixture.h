#pragma once
// Training runs of a tiny recipe in a folder of their own.

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "moe/train/run.h"
#include "tests/train/tiny_run.h"

namespace moe::test {

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
