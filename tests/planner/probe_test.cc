#include "moe/planner/probe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "moe/costs/machine_json.h"
#include "moe/planner/calibrate.h"
#include "moe/planner/probe_json.h"
#include "moe/planner/probe_text.h"

namespace moe {
namespace {

TEST(ProbeMachine, HasEveryFigureForEveryThreadCountOnEveryTable) {
  for (const KernelTable* table : SupportedKernelTables()) {
    SCOPED_TRACE(table->name);
    std::vector<double> shares;
    const MachineProbe probe = ProbeMachine({.max_threads = 3, .seconds = 0, .buffer_bytes = int64_t{9} << 20}, *table,
                                            [&](double share) { shares.push_back(share); });
    EXPECT_EQ(probe.isa, table->name);
    EXPECT_FALSE(probe.cpu.empty());
    EXPECT_EQ(probe.rounds, 3);
    EXPECT_FALSE(probe.interrupted);
    ASSERT_EQ(probe.by_threads.size(), 3u);
    EXPECT_EQ(probe.by_threads[0].threads, 1);
    EXPECT_EQ(probe.by_threads[1].threads, 2);
    EXPECT_EQ(probe.all().threads, 3);
    ASSERT_FALSE(shares.empty());
    EXPECT_EQ(shares.back(), 1);
    for (const CeilingsOf& c : probe.by_threads) {
      for (int i = 0; i < kNumCeilings; ++i) {
        const auto ceiling = static_cast<Ceiling>(i);
        SCOPED_TRACE(i);
        EXPECT_GT(c[ceiling].min, ceiling == Ceiling::kBarrier ? 0 : 1e6);
        EXPECT_LE(c[ceiling].min, c[ceiling].median);
        EXPECT_LE(c[ceiling].median, c[ceiling].max);
        EXPECT_LT(c[ceiling].max, ceiling == Ceiling::kBarrier ? 1 : 1e15);
      }
    }
  }
}

TEST(ProbeWhole, MeasuresAProfileThatCanBeReadAgain) {
  ThreadPool pool(2);
  Arena arena;
  ExecContext ctx{pool, arena, *SupportedKernelTables().front()};
  std::vector<double> shares;
  const MachineProbe probe = ProbeWhole(
      {.seconds = 0, .buffer_bytes = int64_t{16} << 20}, [&](double share) { shares.push_back(share); }, ctx);
  ASSERT_TRUE(probe.profile);
  EXPECT_FALSE(probe.interrupted);
  EXPECT_EQ(probe.profile_rounds, 1);
  EXPECT_EQ(probe.by_threads.size(), 2u);
  EXPECT_TRUE(std::is_sorted(shares.begin(), shares.end()));
  EXPECT_EQ(shares.back(), 1);
  const nlohmann::json json = JsonOf(probe);
  EXPECT_EQ(json["by_threads"][1]["read_bytes_per_s"], probe.profile->read_bytes_per_s);
  EXPECT_GT(probe.profile->handover_s, 0);
  EXPECT_EQ(json["handover_s"], probe.profile->handover_s);
  EXPECT_GT(json["seconds"], 0);
  EXPECT_LE(json["by_threads"][1]["read_bytes_per_s_min"], probe.profile->read_bytes_per_s);
  const auto again = MachineFromJson(nlohmann::json::parse(json.dump()), "probe");
  ASSERT_TRUE(again) << again.error().Message();
  EXPECT_EQ(JsonOf(*again), JsonOf(*probe.profile));
  // Every kind of product of every format, forward and backward, by rows.
  EXPECT_EQ(again->products.size(), 2u * kNumProductKinds);
  for (const ProductCost& cost : again->products) EXPECT_GT(cost.step_s.points.size(), 4u);
  const std::string text = TextOf(probe);
  for (const char* part : {"read-modify-write", "16 MiB", "weight_grad", "bf16 backward", "AdamW", "Medians of 1 round, "}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  }
}

TEST(FitsAnotherRound, WithALittleKeptBackAndNotTooMany) {
  EXPECT_FALSE(FitsAnotherRound(1, -1, 1));
  EXPECT_FALSE(FitsAnotherRound(1, 1, 1));
  EXPECT_TRUE(FitsAnotherRound(1, 1.1, 1));
  EXPECT_TRUE(FitsAnotherRound(24, 1e9, 1e-3));
  EXPECT_FALSE(FitsAnotherRound(25, 1e9, 1e-3));
  EXPECT_TRUE(FitsAnotherRound(1, 1, 0));
}

TEST(TextOfBuiltInMachines, NamesEachWithItsSource) {
  const std::string text = TextOfBuiltInMachines();
  for (const std::string_view name : MachineNames()) {
    EXPECT_NE(text.find(fmt::format("{}: {}\n", name, BuiltInMachine(std::string(name))->cpu)), std::string::npos) << text;
  }
  EXPECT_NE(text.find("data sheet"), std::string::npos);
}

TEST(Summarize, TakesTheMedianOfOddAndEvenCounts) {
  EXPECT_EQ(Summarize({3, 1, 2}).median, 2);
  EXPECT_EQ(Summarize({4, 1, 2, 3}).median, 2.5);
  EXPECT_EQ(Summarize({4, 1, 2, 3}).min, 1);
  EXPECT_EQ(Summarize({4, 1, 2, 3}).max, 4);
}

}  // namespace
}  // namespace moe
