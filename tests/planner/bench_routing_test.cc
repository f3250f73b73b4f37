#include "moe/planner/bench_routing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>

namespace moe {
namespace {

const MoeShape kShapes[] = {{1, 16, 16, 1, 1}, {7, 16, 16, 5, 5}, {64, 16, 16, 8, 2}, {100, 16, 16, 64, 8}, {3, 16, 16, 9, 2}};

TEST(ExpertLoads, SumToSlotsAndNeverExceedTheTokens) {
  for (const MoeShape& s : kShapes) {
    for (const BenchLoads kind : {BenchLoads::kBalanced, BenchLoads::kZipf}) {
      SCOPED_TRACE(fmt::format("T {} E {} k {} {}", s.T, s.E, s.k, Name(kind)));
      const auto loads = ExpertLoads(s, kind);
      ASSERT_EQ(static_cast<int64_t>(loads.size()), s.E);
      EXPECT_EQ(std::accumulate(loads.begin(), loads.end(), int64_t{0}), s.T * s.k);
      const auto [least, most] = std::minmax_element(loads.begin(), loads.end());
      EXPECT_GE(*least, 0);
      EXPECT_LE(*most, s.T);
      if (kind == BenchLoads::kBalanced) {
        EXPECT_LE(*most - *least, 1);
      }
    }
  }
}

TEST(ExpertLoads, ZipfFallsAsOneOverTheRank) {
  auto loads = ExpertLoads({10000, 16, 16, 16, 1}, BenchLoads::kZipf);
  std::sort(loads.begin(), loads.end(), std::greater<>());
  double harmonic = 0;
  for (int i = 1; i <= 16; ++i) harmonic += 1.0 / i;
  for (int i = 1; i <= 16; ++i)
    EXPECT_NEAR(static_cast<double>(loads[static_cast<size_t>(i - 1)]), 10000 / harmonic / i, 1) << i;
}

TEST(ExpertLoads, WhatTheTokensCapCutsOffGoesToTheOthers) {
  auto loads = ExpertLoads({100, 16, 16, 64, 8}, BenchLoads::kZipf);  // unbounded, the busiest would get 169
  EXPECT_EQ(*std::max_element(loads.begin(), loads.end()), 100);
}

TEST(BenchRouting, GivesEveryTokenDifferentExpertsWithTheLoadsAsked) {
  ThreadPool pool(2);
  Arena arena;
  ExecContext ctx{pool, arena, **SelectKernelTable()};
  for (const MoeShape& s : kShapes) {
    for (const BenchLoads kind : {BenchLoads::kBalanced, BenchLoads::kZipf}) {
      SCOPED_TRACE(fmt::format("T {} E {} k {} {}", s.T, s.E, s.k, Name(kind)));
      const auto r = MakeBenchRouting(s, kind, ctx);
      const auto loads = ExpertLoads(s, kind);
      ASSERT_EQ(r->plan.num_experts(), s.E);
      EXPECT_EQ(r->plan.num_rows(), s.T * s.k);
      for (int64_t e = 0; e < s.E; ++e) EXPECT_EQ(r->plan.rows_of(e), loads[static_cast<size_t>(e)]) << e;
      for (int64_t t = 0; t < s.T; ++t) {
        const auto first = r->expert.begin() + t * s.k;
        EXPECT_EQ(static_cast<int64_t>(std::set<int32_t>(first, first + s.k).size()), s.k) << t;
      }
    }
  }
}

}  // namespace
}  // namespace moe
