#include "moe/files/utf8.h"

#include <gtest/gtest.h>

#include <random>

namespace moe {
namespace {

TEST(Utf8, EveryCodePointRoundTrips) {
  for (uint32_t c = 0; c <= 0x10ffff; ++c) {
    if (c >= 0xd800 && c <= 0xdfff) continue;
    const std::string text = EncodeUtf8(c);
    const Utf8Step step = NextUtf8(text);
    ASSERT_EQ(step.kind, Utf8Step::kCodePoint) << c;
    ASSERT_EQ(step.code_point, c);
    ASSERT_EQ(step.bytes, static_cast<int>(text.size()));
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const Utf8Step part = NextUtf8(std::string_view(text).substr(0, cut));
      ASSERT_EQ(part.kind, Utf8Step::kIncomplete) << c;
      ASSERT_EQ(part.bytes, static_cast<int>(cut));
    }
  }
}

TEST(Utf8, RefusesOverlongSurrogatesAndTooLarge) {
  for (const char* bad : {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xed\xbf\xbf",
                          "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xc3z", "\xe2\x82z"}) {
    EXPECT_EQ(NextUtf8(bad).kind, Utf8Step::kInvalid) << bad;
    EXPECT_EQ(ValidUtf8Prefix(std::string("ab\xc3\xa9") + bad), 4u) << bad;
  }
}

TEST(Utf8, ValidPrefixIsTheWholeOfValidText) {
  EXPECT_EQ(ValidUtf8Prefix(""), 0u);
  const std::string text = "plain, h\xc3\xa9, \xe2\x82\xac, \xf0\x9f\x98\x80";
  EXPECT_EQ(ValidUtf8Prefix(text), text.size());
  EXPECT_EQ(ValidUtf8Prefix(text.substr(0, text.size() - 1)), text.size() - 4);
}

TEST(Utf8Stream, GivesOutWholeCodePointsHoweverTheTextIsCut) {
  const std::string text = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z";
  for (uint32_t cuts = 0; cuts < 1u << (text.size() - 1); ++cuts) {
    Utf8Stream stream;
    std::string out, piece;
    for (size_t i = 0; i < text.size(); ++i) {
      piece += text[i];
      if (i + 1 < text.size() && !(cuts >> i & 1)) continue;
      const std::string given = stream.Push(piece);
      ASSERT_EQ(ValidUtf8Prefix(given), given.size());
      out += given;
      piece.clear();
    }
    ASSERT_EQ(out, text);
    ASSERT_EQ(stream.Flush(), "");
  }
}

TEST(Utf8Stream, ReplacesWhatIsNotUtf8) {
  Utf8Stream stream;
  EXPECT_EQ(stream.Push("a\xff\xc3"), "a\xef\xbf\xbd");
  EXPECT_EQ(stream.Push("z\xe2\x82"), "\xef\xbf\xbdz");  // \xc3 was not continued
  EXPECT_EQ(stream.Push(""), "");
  EXPECT_EQ(stream.Flush(), "\xef\xbf\xbd");
  EXPECT_EQ(stream.Flush(), "");
}

TEST(Utf8Stream, RandomBytesDoNotDependOnTheCuts) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 rng(seed);
    std::string bytes(rng() % 40, ' ');
    for (char& c : bytes) c = "a\x80\x9f\xa0\xbf\xc3\xe0\xe2\xed\xf0\xf4\xff"[rng() % 12];
    Utf8Stream whole, cut;
    std::string expected = whole.Push(bytes);
    expected += whole.Flush();
    std::string got;
    for (const char c : bytes) got += cut.Push(std::string(1, c));
    EXPECT_EQ(got + cut.Flush(), expected);
    EXPECT_EQ(ValidUtf8Prefix(expected), expected.size());
  }
}

}  // namespace
}  // namespace moe
