#include "moe/files/nfc.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "moe/files/utf8.h"

namespace moe {
namespace {

std::string Nfc(std::string_view text) {
  std::string storage;
  return std::string(ToNfc(text, storage));
}

struct Pair {
  const char *text, *nfc;
};
// What Python's unicodedata.normalize says (Unicode 14).
constexpr Pair kPairs[] = {
    {"", ""},
    {"plain text, caf\u00e9", "plain text, caf\u00e9"},
    {"cafe\u0301", "caf\u00e9"},
    {"\u0301e", "\u0301e"},             // a mark without a base
    {"\u00e9\u0301", "\u00e9\u0301"},   // no second accent fits
    {"u\u0308\u0301", "\u01d8"},        // two marks, one letter
    {"u\u0301\u0308", "\u00fa\u0308"},  // of one class they keep their order
    {"a\u0316\u0301", "\u00e1\u0316"},  // past a mark of another class
    {"a\u0301\u0316", "\u00e1\u0316"},  // marks are sorted by class
    {"s\u0323\u0307", "\u1e69"},
    {"s\u0307\u0323", "\u1e69"},
    {"\u212b \u2126", "\u00c5 \u03a9"},                // Angstrom and Ohm are letters
    {"\ufb01 \u00bd \u2460", "\ufb01 \u00bd \u2460"},  // compatibility forms stay
    {"\u0958", "\u0915\u093c"},                        // excluded from composition
    {"\u1100\u1161\u11a8", "\uac01"},                  // Hangul
    {"\uac00\u11a8", "\uac01"},
    {"\uac00\u11a7", "\uac00\u11a7"},  // no final consonant
    {"\uac00\u11a7\u11a8", "\uac00\u11a7\u11a8"},
    {"\u304b\u3099", "\u304c"},  // kana
    {"\uf900", "\u8c48"},        // a CJK compatibility ideograph
    {"\U0001d15e", "\U0001d157\U0001d165"},
    {"\U00011099\U000110ba", "\U0001109a"},
    {"e\u0301x\u0301 y e\u0301", "\u00e9x\u0301 y \u00e9"},
};

TEST(Nfc, ComposesAsUnicodeSays) {
  for (const auto& [text, nfc] : kPairs) {
    EXPECT_EQ(Nfc(text), nfc) << text;
    EXPECT_EQ(Nfc(nfc), nfc);
  }
}

TEST(Nfc, TextWithNothingToChangeIsNotCopied) {
  std::string storage;
  for (const std::string text : {"", "caf\u00e9, na\u00efve", "\xff\xfe \xc3"}) {
    const std::string_view result = ToNfc(text, storage);
    EXPECT_EQ(result.data(), text.data());
    EXPECT_EQ(result.size(), text.size());
  }
}

TEST(Nfc, BytesThatAreNotUtf8StayAndNothingComposesAcrossThem) {
  const Pair pairs[] = {
      {"e\xff\u0301", "e\xff\u0301"},  // between base and mark
      {"\xff"
       "e\u0301\xfe",
       "\xff\u00e9\xfe"},             // around them
      {"e\u0301\xcc", "\u00e9\xcc"},  // a mark cut off
      {"\xc3\u0301", "\xc3\u0301"},   // a base cut off
      {"\x81\u0301", "\x81\u0301"},
      {"e\xed\xa0\x80\u0301", "e\xed\xa0\x80\u0301"},             // a surrogate
      {"e\xf4\x90\x80\x80 e\u0301", "e\xf4\x90\x80\x80 \u00e9"},  // beyond U+10FFFF
      {"\xe2\x82"
       "a\u0308\xe2\x82",
       "\xe2\x82\u00e4\xe2\x82"},
  };
  for (const auto& [text, nfc] : pairs) EXPECT_EQ(Nfc(text), nfc);
}

// Whatever the pieces: normalizing again changes nothing, and marks of different classes may come in any order.
TEST(Nfc, IsIdempotentAndBlindToTheOrderOfMarks) {
  const std::vector<std::string> parts = {"a",      "e", "\u00e9", "\u01d8", "\uac00",   "\u1100", "\u1161",    "\u11a8",
                                          "\u0958", " ", "\xff",   "\xcc",   "\xe2\x82", "\u212b", "\U0001d15e"};
  const std::vector<std::string> marks = {"\u0301", "\u0316", "\u0327", "\u0345", "\u3099"};  // a class each
  for (uint32_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 rng(seed);
    std::string text, shuffled;
    for (size_t n = rng() % 6; n > 0; --n) {
      const std::string& part = parts[rng() % parts.size()];
      std::vector<std::string> some;
      for (const std::string& mark : marks)
        if (rng() % 3 == 0) some.push_back(mark);
      text += part, shuffled += part;
      for (const std::string& mark : some) text += mark;
      std::ranges::shuffle(some, rng);
      for (const std::string& mark : some) shuffled += mark;
    }
    const std::string nfc = Nfc(text);
    EXPECT_EQ(Nfc(nfc), nfc);
    EXPECT_EQ(Nfc(shuffled), nfc);
  }
}

TEST(Nfc, LongRunsOfMarksAreDoneInTime) {  // quadratic work would take minutes
  std::string text = "e", tail;
  for (int i = 0; i < 200000; ++i) text += "\u0301\u0316";
  const std::string nfc = Nfc(text);
  EXPECT_TRUE(nfc.starts_with("\u00e9\u0316\u0316")) << nfc.substr(0, 6);
  EXPECT_TRUE(nfc.ends_with("\u0301\u0301"));
  EXPECT_EQ(nfc.size(), text.size() - 1);  // e and a mark became one letter
}

}  // namespace
}  // namespace moe
