#include "moe/infer/text_stream.h"

#include <gtest/gtest.h>

#include "moe/base/rng.h"

namespace moe {
namespace {

// All text that comes out when the bytes go in as pieces.
std::string Stream(std::vector<std::string> stops, const std::vector<std::string>& pieces, bool* stopped = nullptr) {
  TextStream stream(std::move(stops));
  std::string text;
  for (const std::string& piece : pieces) text += stream.Push(piece);
  text += stream.Flush();
  if (stopped != nullptr) *stopped = stream.stopped();
  return text;
}

TEST(TextStream, HoldsBackHalfACodePoint) {
  TextStream stream({});
  EXPECT_EQ(stream.Push("a\xe2"), "a");
  EXPECT_EQ(stream.Push("\x82"), "");
  EXPECT_EQ(stream.Push("\xac!"), "\u20ac!");
  EXPECT_EQ(stream.Push("\xf0\x9f"), "");
  EXPECT_EQ(stream.Flush(), "\uFFFD");
}

TEST(TextStream, HoldsBackWhatMayBecomeAStopString) {
  TextStream stream({"END"});
  EXPECT_EQ(stream.Push("the E"), "the ");
  EXPECT_EQ(stream.Push("N"), "");
  EXPECT_EQ(stream.Push("ERGY"), "ENERGY");
  EXPECT_EQ(stream.Push("EEN"), "E");
  EXPECT_FALSE(stream.stopped());
  EXPECT_EQ(stream.Push("D after"), "");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.Push("more"), "");
  EXPECT_EQ(stream.Flush(), "");
}

TEST(TextStream, WhatWasHeldBackComesAtTheEnd) {
  EXPECT_EQ(Stream({"END"}, {"the EN"}), "the EN");
}

TEST(TextStream, TheFirstCompleteStopStringCounts) {
  bool stopped = false;
  EXPECT_EQ(Stream({"abcX", "bc"}, {"abc", "X"}, &stopped), "a");
  EXPECT_TRUE(stopped);
  EXPECT_EQ(Stream({"bc", "abc"}, {"xabcd"}), "x");
  EXPECT_EQ(Stream({"abc", "bc"}, {"xabcd"}), "x");
  EXPECT_EQ(Stream({"\n\n"}, {"a\n", "b\n", "\nc"}), "a\nb");
}

// However the bytes are cut, the text is the one before the stop string that a search over the whole finds complete first.
TEST(TextStream, CutsDoNotMatter) {
  for (uint32_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const auto random_text = [&](int64_t size) {
      std::string text;
      for (int64_t i = 0; i < size; ++i) text += static_cast<char>('a' + rng.Below(2));
      return text;
    };
    const std::string text = random_text(rng.Below(30));
    std::vector<std::string> stops;
    for (int64_t i = rng.Below(4); i > 0; --i) stops.push_back(random_text(1 + rng.Below(7)));

    std::string want = text;
    bool want_stopped = false;
    for (size_t end = 1; end <= text.size() && !want_stopped; ++end) {
      size_t longest = 0;
      for (const std::string& stop : stops) {
        if (text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
      }
      if (longest > 0) want = text.substr(0, end - longest), want_stopped = true;
    }

    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      const auto size = static_cast<size_t>(rng.Below(6));
      pieces.push_back(text.substr(at, size));
      at += size;
    }
    bool stopped = false;
    EXPECT_EQ(Stream(stops, pieces, &stopped), want) << text;
    EXPECT_EQ(stopped, want_stopped);
  }
}

}  // namespace
}  // namespace moe
