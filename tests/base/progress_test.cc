#include "moe/base/progress.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

namespace moe {
namespace {

TEST(Format, Counts) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(950), "950");
  EXPECT_EQ(FormatCount(999.6), "1.00 k");
  EXPECT_EQ(FormatCount(12345), "12.3 k");
  EXPECT_EQ(FormatCount(7.6e6), "7.60 M");
  EXPECT_EQ(FormatCount(999'999), "1.00 M");
  EXPECT_EQ(FormatCount(671e9), "671 B");
  EXPECT_EQ(FormatCount(1.5e12), "1.50 T");
  EXPECT_EQ(FormatCount(0.5), "0.50");
  EXPECT_EQ(FormatCount(-12345), "-12.3 k");
}

TEST(Format, BytesAndRates) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(950), "950 B");
  EXPECT_EQ(FormatBytes(30.4e6), "30.4 MB");
  EXPECT_EQ(FormatBytes(1.2e9), "1.20 GB");
  EXPECT_EQ(FormatRate(11.3e9, "FLOP"), "11.3 GFLOP/s");
  EXPECT_EQ(FormatRate(1630, " tokens"), "1.63 k tokens/s");
  EXPECT_EQ(FormatRate(950, " tokens"), "950 tokens/s");
  EXPECT_EQ(FormatRate(48.6e9, "B"), "48.6 GB/s");
}

TEST(Format, Seconds) {
  EXPECT_EQ(FormatSeconds(0), "0 s");
  EXPECT_EQ(FormatSeconds(2.5e-8), "25 ns");
  EXPECT_EQ(FormatSeconds(4.5e-6), "4.50 us");
  EXPECT_EQ(FormatSeconds(0.012), "12.0 ms");
  EXPECT_EQ(FormatSeconds(0.99999), "1.00 s");
  EXPECT_EQ(FormatSeconds(1.3), "1.30 s");
  EXPECT_EQ(FormatSeconds(59.4), "59 s");
  EXPECT_EQ(FormatSeconds(59.6), "1m00s");
  EXPECT_EQ(FormatSeconds(192), "3m12s");
  EXPECT_EQ(FormatSeconds(3725), "1h02m");
  EXPECT_EQ(FormatSeconds(2 * 86400 + 3 * 3600), "2d03h");
  EXPECT_EQ(FormatSeconds(-192), "-3m12s");
  EXPECT_EQ(FormatSeconds(NAN), "?");
  EXPECT_EQ(FormatSeconds(INFINITY), "?");
}

TEST(LoadBars, ScalesToTheLargestAndKeepsZeroApart) {
  EXPECT_EQ(LoadBars(std::vector<int64_t>{}), "");
  EXPECT_EQ(LoadBars(std::vector<int64_t>{0, 0}), "▁▁");
  EXPECT_EQ(LoadBars(std::vector<int64_t>{0, 1, 1'000'000}), "▁▂█");
  EXPECT_EQ(LoadBars(std::vector<int64_t>{1, 2, 3, 4, 5, 6}), "▃▄▅▆▇█");
  EXPECT_EQ(LoadBars(std::vector<int64_t>{7, 7, 7}), "███");
}

TEST(ProgressBar, FillsInHalves) {
  EXPECT_EQ(ProgressBar(0, 4), "────");
  EXPECT_EQ(ProgressBar(0.125, 4), "╸───");
  EXPECT_EQ(ProgressBar(0.5, 4), "━━──");
  EXPECT_EQ(ProgressBar(1, 4), "━━━━");
  EXPECT_EQ(ProgressBar(7, 4), "━━━━");
  EXPECT_EQ(ProgressBar(-1, 4), "────");
  EXPECT_EQ(ProgressBar(NAN, 4), "────");
  EXPECT_EQ(ProgressBar(0.5, 0), "");
}

TEST(Truncate, CutsBetweenCodePoints) {
  EXPECT_EQ(DisplayWidth("a▁é"), 3);
  EXPECT_EQ(Truncate("a▁é", 3), "a▁é");
  EXPECT_EQ(Truncate("a▁éz", 3), "a▁…");
  EXPECT_EQ(Truncate("abc", 1), "…");
  EXPECT_EQ(Truncate("abc", 0), "");
  EXPECT_EQ(Truncate("", 0), "");
}

double g_now = 0;

// A stream in memory and a clock set by hand.
class ProgressLineTest : public testing::Test {
 protected:
  ProgressLineTest() {
    g_now = 100;
    setenv("COLUMNS", "20", 1);
  }
  ~ProgressLineTest() override {
    if (options_.stream != nullptr) std::fclose(options_.stream);
    std::free(text_);
  }
  std::string Text() {
    std::fflush(options_.stream);
    return {text_, size_};
  }
  ProgressOptions Options(ProgressOptions::Terminal terminal) {
    options_.stream = open_memstream(&text_, &size_);
    options_.terminal = terminal;
    options_.now = [] { return g_now; };
    return options_;
  }

 private:
  char* text_ = nullptr;
  size_t size_ = 0;
  ProgressOptions options_;
};

TEST_F(ProgressLineTest, PlainLinesComeNowAndThenAndTheLastOneAlways) {
  {
    ProgressLine line(Options(ProgressOptions::Terminal::kNo));
    for (int step = 1; step <= 25; ++step) {
      line.Update("step " + std::to_string(step));
      g_now += 1;
    }
    EXPECT_EQ(Text(), "step 1\nstep 11\nstep 21\n");
    line.Print("saved");
    EXPECT_EQ(Text(), "step 1\nstep 11\nstep 21\nsaved\n");
  }
  EXPECT_EQ(Text(), "step 1\nstep 11\nstep 21\nsaved\nstep 25\n");
}

TEST_F(ProgressLineTest, ATerminalLineIsRedrawnInPlace) {
  ProgressLine line(Options(ProgressOptions::Terminal::kYes));
  EXPECT_TRUE(line.Due());
  line.Update("step 1");
  EXPECT_FALSE(line.Due());
  line.Update("step 2");  // too soon
  g_now += 0.2;
  line.Update("a line that is wider than the terminal");
  EXPECT_EQ(Text(), "\rstep 1\x1b[K\ra line that is wid…\x1b[K");
  line.Print("saved");
  EXPECT_EQ(Text(), "\rstep 1\x1b[K\ra line that is wid…\x1b[K\r\x1b[Ksaved\n\ra line that is wid…\x1b[K");
}

TEST_F(ProgressLineTest, FinishShowsTheLastLineOnce) {
  ProgressLine line(Options(ProgressOptions::Terminal::kYes));
  line.Update("step 1");
  line.Update("step 2");
  line.Finish();
  EXPECT_EQ(Text(), "\rstep 1\x1b[K\rstep 2\x1b[K\n");
  line.Finish();
  EXPECT_EQ(Text(), "\rstep 1\x1b[K\rstep 2\x1b[K\n");
}

TEST_F(ProgressLineTest, NothingShownIsNothingEnded) {
  { ProgressLine line(Options(ProgressOptions::Terminal::kYes)); }
  EXPECT_EQ(Text(), "");
}

}  // namespace
}  // namespace moe
