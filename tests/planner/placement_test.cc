#include "moe/planner/placement.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

TEST(HandoverSeconds, IsOfAllThreadsAndNoneOfOne) {
  ThreadPool alone(1);
  EXPECT_EQ(HandoverSeconds(alone), 0);
  for (const int threads : {2, 3, 16}) {  // more than there are cores, too
    ThreadPool pool(threads);
    const double s = HandoverSeconds(pool);
    EXPECT_GT(s, 1e-9) << threads;
    EXPECT_LT(s, 1) << threads;
  }
}

TEST(SamePlacement, ToleratesNoiseButNotAnotherCache) {
  EXPECT_TRUE(SamePlacement(50e-9, 50e-9));
  EXPECT_TRUE(SamePlacement(48e-9, 80e-9));
  EXPECT_TRUE(SamePlacement(80e-9, 48e-9));
  EXPECT_FALSE(SamePlacement(50e-9, 190e-9));
  EXPECT_FALSE(SamePlacement(50e-9, 15e-9));
  EXPECT_TRUE(SamePlacement(0, 0));  // one thread
  EXPECT_FALSE(SamePlacement(0, 50e-9));
}

TEST(Placement, IsFoundAtOnceWhenAnyWillDo) {
  ThreadPool pool(2);
  Placement placement(0, 1e9);
  EXPECT_EQ(placement.typical_s(), 0);
  EXPECT_TRUE(placement.Await(pool, [] { return true; }));
  EXPECT_GT(placement.now_s(), 0);
  EXPECT_EQ(placement.typical_s(), placement.now_s());
  placement.WantTypical();
  EXPECT_EQ(placement.wanted_s(), placement.typical_s());
}

TEST(Placement, IsAwaitedAsLongAsPatienceLastsAndNobodyStopsIt) {
  ThreadPool pool(2);
  constexpr double kNever = 1e6;  // no cores are so far apart
  Placement stopped(kNever, 1e9);
  int asked = 0;
  EXPECT_FALSE(stopped.Await(pool, [&] { return ++asked < 3; }));
  EXPECT_EQ(asked, 3);
  Placement impatient(kNever, 0);
  asked = 0;
  EXPECT_FALSE(impatient.Await(pool, [&] { return ++asked < 3; }));
  EXPECT_EQ(asked, 0);
  Placement brief(kNever, 0.02);
  EXPECT_FALSE(brief.Await(pool, [&] { return ++asked < 1000; }));
  EXPECT_GE(asked, 1);
  const int first = asked;
  EXPECT_FALSE(brief.Await(pool, [&] { return ++asked < 1000; }));  // nothing is left
  EXPECT_EQ(asked, first);
}

TEST(Placement, SaysWhatToDoAgainWhileThereIsPatience) {
  ThreadPool pool(2);
  constexpr double kNever = 1e6;
  Placement any(0, 10);
  EXPECT_FALSE(any.Again(true, 1, pool));
  Placement never(kNever, 2.5);
  EXPECT_TRUE(never.Again(false, 1, pool));
  EXPECT_TRUE(never.Again(false, 1, pool));
  EXPECT_TRUE(never.patient());
  EXPECT_TRUE(never.Again(false, 1, pool));
  EXPECT_FALSE(never.patient());  // 2.5 s are spent
  EXPECT_FALSE(never.Again(true, 1, pool));
  EXPECT_GT(never.now_s(), 0);
}

TEST(PlacedSamples, AreThoseOfOnePlacementOrAll) {
  const PlacedSamples samples{.values = {1, 2, 3, 4}, .handovers_s = {50e-9, 190e-9, 60e-9, 15e-9}};
  EXPECT_EQ(samples.Of(52e-9), (std::vector<double>{1, 3}));
  EXPECT_EQ(samples.Of(200e-9), (std::vector<double>{2}));
  EXPECT_EQ(samples.Of(1e-3), samples.values);
  EXPECT_TRUE(PlacedSamples{}.Of(1e-9).empty());
}

}  // namespace
}  // namespace moe
