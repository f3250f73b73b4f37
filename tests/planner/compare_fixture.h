#pragma once
// Comparisons of runs that take a fraction of a second.

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "moe/planner/compare_report.h"
#include "tests/train/tiny_run.h"

namespace moe::test {

// What a report says but for what clocks say.
inline nlohmann::json WithoutTimes(nlohmann::json report) {
  for (auto& variant : report["variants"]) {
    variant.erase("step_s"), variant.erase("step_ratio");
    for (auto& run : variant["runs"]) {
      run.erase("step_s"), run.erase("step_ratios"), run.erase("folder");
      for (auto& point : run["curve"]) point.erase("seconds");
    }
  }
  report.erase("folder");
  return report;
}

class CompareTest : public testing::Test {
 protected:
  CompareTest() { WriteTinyRun(dir_); }

  std::string Folder(const std::string& name) const { return dir_ / name; }

  CompareOptions Options(const std::string& folder,
                         const std::vector<std::string>& variants = {"one: model.top_k=1 router.normalize=false",
                                                                     "wide: model.experts=6"}) const {
    CompareOptions options{.recipes = {dir_ / "r.toml"}, .folder = Folder(folder)};
    for (const std::string& text : variants) options.variants.push_back(ParseVariant(text, "--variant").value());
    return options;
  }

  // The plan, and whether the runs were done.
  Result<CompareReport> Compare(const CompareOptions& options, const CompareObserver& observer = {}, bool* done = nullptr,
                                int threads = 1) {
    MOE_TRY(ComparePlan plan, MakeComparePlan(options));
    ThreadPool pool(threads);
    Arena arena;
    ExecContext ctx{pool, arena, *SupportedKernelTables().front()};
    MOE_TRY(const bool all, RunComparison(plan, observer, ctx));
    if (done != nullptr) *done = all;
    return CollectComparison(plan);
  }

  template <class T>
  static void ExpectError(const Result<T>& result, const std::string& where, const std::string& part, int exit_code = 1) {
    ASSERT_FALSE(result) << "expected: " << part;
    EXPECT_EQ(result.error().where, where);
    EXPECT_NE(result.error().what.find(part), std::string::npos) << result.error().Message();
    EXPECT_EQ(result.error().Message().find('\n'), std::string::npos);
    EXPECT_EQ(result.error().exit_code, exit_code) << result.error().Message();
  }

  TempDir dir_;
};

}  // namespace moe::test
