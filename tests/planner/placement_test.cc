#include "moe/planner/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

namespace moe {
namespace {

TEST(HandoverSeconds, IsOfAllThreadsAndNoneOfOne) {
  ThreadPool alone(1);
  EXPECT_EQ(HandoverSeconds(alone), 0);
  const int processors = static_cast<int>(std::thread::hardware_concurrency());
  if (processors < 2) GTEST_SKIP() << "one processor";
  for (int threads = 2; threads <= std::min(processors, 4); ++threads) {
    ThreadPool pool(threads);
    const double s = HandoverSeconds(pool);
    EXPECT_GT(s, 1e-9) << threads;
    EXPECT_LT(s, 1) << threads;
  }
  ThreadPool crowd(processors + 1);  // which has no place of its own
  EXPECT_EQ(HandoverSeconds(crowd), 0);
}

TEST(TypicalHandover, IsTheOneThatMostOthersAreLike) {
  EXPECT_EQ(TypicalHandover({}), 0);
  EXPECT_EQ(TypicalHandover({15e-9, 15e-9, 50e-9, 170e-9, 170e-9, 180e-9}), 170e-9);  // the median is the rarest
  EXPECT_EQ(TypicalHandover({0, 0}), 0);
}

TEST(SamePlacement, ToleratesNoiseButNotAnotherCache) {
  EXPECT_TRUE(SamePlacement(50e-9, 50e-9));
  EXPECT_TRUE(SamePlacement(31e-9, 45e-9));
  EXPECT_TRUE(SamePlacement(45e-9, 31e-9));
  EXPECT_FALSE(SamePlacement(45e-9, 90e-9));
  EXPECT_FALSE(SamePlacement(31e-9, 18e-9));
  EXPECT_FALSE(SamePlacement(50e-9, 190e-9));
  EXPECT_FALSE(SamePlacement(50e-9, 15e-9));
  EXPECT_TRUE(SamePlacement(0, 0));  // one thread
  EXPECT_FALSE(SamePlacement(0, 50e-9));
}

TEST(BestPlacement, IsTheNearestOfWholeCoresThatIsMetOftenEnough) {
  EXPECT_EQ(BestPlacement({}), 0);
  EXPECT_EQ(BestPlacement({{200, 210}, {170e-9, 180e-9}}), 175e-9);
  PlacedSamples paces;
  const auto add = [&](int count, double pace, double handover_s) {
    for (int i = 0; i < count; ++i) paces.values.push_back(pace), paces.handovers_s.push_back(handover_s);
  };
  add(60, 210, 170e-9), add(20, 110, 15e-9), add(5, 215, 50e-9);
  EXPECT_EQ(BestPlacement(paces), 170e-9);  // 50 ns were hardly met, and 15 ns are halves of a core
  add(5, 215, 50e-9);
  EXPECT_EQ(BestPlacement(paces), 50e-9);
  PlacedSamples alone{{110, 112, 111}, {15e-9, 15e-9, 15e-9}};
  EXPECT_EQ(BestPlacement(alone), 15e-9);  // nothing else was there
}

// Says one after the other, then the last again and again.
Placement::Source Script(std::vector<double> script) {
  return [script, at = size_t{0}](ThreadPool&) mutable { return script[std::min(at++, script.size() - 1)]; };
}

TEST(Placement, IsFoundAtOnceWhenAnyWillDo) {
  ThreadPool pool(1);
  Placement placement(0, 1e9, Script({15e-9, 50e-9, 55e-9}));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(placement.Await(pool, [] { return true; }));
  EXPECT_EQ(placement.now_s(), 55e-9);
  EXPECT_FALSE(placement.patient());
  placement.Want(50e-9);
  EXPECT_EQ(placement.wanted_s(), 50e-9);
  EXPECT_TRUE(placement.patient());
}

TEST(Placement, IsAwaitedAsLongAsPatienceLastsAndNobodyStopsIt) {
  ThreadPool pool(1);
  Placement comes(50e-9, 1e9, Script({170e-9, 15e-9, 60e-9}));
  int asked = 0;
  EXPECT_TRUE(comes.Await(pool, [&] { return ++asked < 100; }));
  EXPECT_EQ(asked, 2);
  EXPECT_GT(comes.waited_s(), 0);
  Placement stopped(50e-9, 1e9, Script({170e-9}));
  asked = 0;
  EXPECT_FALSE(stopped.Await(pool, [&] { return ++asked < 3; }));
  EXPECT_EQ(asked, 3);
  Placement impatient(50e-9, 0, Script({170e-9}));
  asked = 0;
  EXPECT_FALSE(impatient.Await(pool, [&] { return ++asked < 3; }));
  EXPECT_EQ(asked, 0);
  Placement brief(50e-9, 0.2, Script({170e-9}));
  EXPECT_FALSE(brief.Await(pool, [&] { return ++asked < 100'000; }));
  EXPECT_GE(asked, 1);
  const int first = asked;
  EXPECT_FALSE(brief.Await(pool, [&] { return ++asked < 100'000; }));  // nothing is left
  EXPECT_EQ(asked, first);
}

TEST(Placement, SaysWhatToDoAgainWhileThereIsPatience) {
  HandoverRange here, moved;
  here.Add(50e-9), here.Add(60e-9);
  moved.Add(50e-9), moved.Add(170e-9), moved.Add(50e-9);
  Placement any(0, 100);
  EXPECT_FALSE(any.Again(moved, 1));
  Placement wanted(50e-9, 20);
  EXPECT_FALSE(wanted.Again(here, 1));
  EXPECT_FALSE(wanted.Again(moved, 3));  // longer than the cores would stay
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(wanted.Again(moved, 2));
  EXPECT_FALSE(wanted.patient());
  EXPECT_FALSE(wanted.Again(moved, 1));
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
