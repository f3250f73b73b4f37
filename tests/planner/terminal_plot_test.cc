#include "moe/planner/terminal_plot.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "moe/base/progress.h"

namespace moe {
namespace {

TerminalPlot Valley() {
  return {.title = "a valley",
          .x = {1, 4, 16, 64, 256, 1024},
          .series = {{"total", {4, 2, 1, 1, 2, 4}}, {"active", {1, 0.5, 0.25, 0.25, 0.5, 1}}},
          .bands = {{1, 8, "memory"}, {8, 128, "middle"}, {128, 1024, "compute"}},
          .x_name = "batch"};
}

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

TEST(TerminalPlot, FitsItsWidth) {
  for (const int width : {10, 60, 80, 100, 200}) {
    for (const bool unicode : {false, true}) {
      for (const std::string& line : Lines(Draw(Valley(), width, unicode))) {
        EXPECT_LE(DisplayWidth(line), std::clamp(width, 60, 100)) << line;
      }
    }
  }
}

TEST(TerminalPlot, AsciiIsAscii) {
  const std::string plain = Draw(Valley(), 80, false), rich = Draw(Valley(), 80, true);
  EXPECT_TRUE(std::ranges::all_of(plain, [](char c) { return static_cast<unsigned char>(c) < 0x80; }));
  EXPECT_NE(rich.find("●"), std::string::npos);
  EXPECT_EQ(Lines(plain).size(), Lines(rich).size());
}

TEST(TerminalPlot, DrawsWhereThePointsAre) {
  const auto lines = Lines(Draw(Valley(), 80, false));
  ASSERT_GT(lines.size(), 16);
  EXPECT_EQ(lines[0], "a valley");
  EXPECT_NE(lines[1].find("* total"), std::string::npos);
  // The first curve starts at the top left and ends at the top right; the second has the bottom between them.
  const std::string &top = lines[2], &bottom = lines[14];
  EXPECT_EQ(top[8], '*');
  EXPECT_EQ(top.back(), '*');
  EXPECT_EQ(top.size(), 78);
  EXPECT_EQ(bottom[8], ' ');
  EXPECT_NE(bottom.find("oooo"), std::string::npos);
  EXPECT_EQ(bottom.find('*'), std::string::npos);
  // 4 to 1/4: 1 is half way, and its line is drawn where no curve is.
  EXPECT_NE(lines[8].find("1x +"), std::string::npos) << lines[8];
  EXPECT_NE(lines[8].find("..."), std::string::npos) << lines[8];
}

TEST(TerminalPlot, NamesBatchesAndRegimes) {
  const auto lines = Lines(Draw(Valley(), 80, false));
  const std::string &labels = lines[16], &bands = lines[17];
  EXPECT_TRUE(labels.starts_with("batch   1 ")) << labels;
  for (const char* x : {" 4 ", " 16 ", " 64 ", " 256 ", " 1024"}) EXPECT_NE(labels.find(x), std::string::npos) << x;
  const size_t memory = bands.find(" memory "), middle = bands.find(" middle "), compute = bands.find(" compute ");
  ASSERT_NE(compute, std::string::npos) << bands;
  EXPECT_LT(memory, middle);
  EXPECT_LT(middle, compute);
}

TEST(TerminalPlot, OddInput) {
  TerminalPlot plot = Valley();
  plot.bands = {{1, 1.01, "memory"}, {1.01, 1024, "compute"}};  // one without room
  EXPECT_NE(Draw(plot, 60, true).find("compute"), std::string::npos);
  plot.series = {{"flat", {1, 1, 1, 1, 1, 1}}};
  EXPECT_NE(Draw(plot, 60, false).find("****"), std::string::npos);
  plot.x = {3}, plot.series = {{"point", {1}}};
  EXPECT_EQ(Draw(plot, 60, true), "");
}

TEST(Utf8Locale, AsksTheEnvironmentInItsOrder) {
  const auto with = [](const char* all, const char* ctype, const char* lang) {
    setenv("LC_ALL", all, 1), setenv("LC_CTYPE", ctype, 1), setenv("LANG", lang, 1);
    return Utf8Locale();
  };
  EXPECT_TRUE(with("", "", "en_US.UTF-8"));
  EXPECT_TRUE(with("C.utf8", "C", "C"));
  EXPECT_FALSE(with("C", "", "en_US.UTF-8"));
  EXPECT_FALSE(with("", "POSIX", "en_US.UTF-8"));
  EXPECT_FALSE(with("", "", ""));
}

}  // namespace
}  // namespace moe
