#include "moe/files/utf8.h"

#include "moe/base/check.h"

namespace moe {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

}  // namespace

Utf8Step NextUtf8(std::string_view text) {
  MOE_DCHECK(!text.empty());
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Utf8Step::kCodePoint, 1, lead};
  // The lead byte narrows the range of the second: this is what excludes overlong forms, surrogates and what lies beyond
  // U+10FFFF.
  int length;
  uint8_t low = 0x80, high = 0xbf;
  if (lead >= 0xc2 && lead <= 0xdf) {
    length = 2;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    length = 3;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    length = 4;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
  } else {
    return {Utf8Step::kInvalid, 1, 0};
  }
  uint32_t code_point = lead & (0xffu >> (length + 1));
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) == text.size()) return {Utf8Step::kIncomplete, i, 0};
    const uint8_t next = byte(static_cast<size_t>(i));
    if (next < low || next > high) return {Utf8Step::kInvalid, i, 0};
    code_point = code_point << 6 | (next & 0x3fu);
    low = 0x80, high = 0xbf;
  }
  return {Utf8Step::kCodePoint, length, code_point};
}

size_t ValidUtf8Prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (static_cast<uint8_t>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const Utf8Step step = NextUtf8(text.substr(at));
    if (step.kind != Utf8Step::kCodePoint) break;
    at += static_cast<size_t>(step.bytes);
  }
  return at;
}

std::string EncodeUtf8(uint32_t c) {
  MOE_CHECK(c <= 0x10ffff && (c < 0xd800 || c > 0xdfff), "U+{:X}", c);
  const auto tail = [c](int shift) { return static_cast<char>(0x80 | (c >> shift & 0x3f)); };
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xc0 | c >> 6), tail(0)};
  if (c < 0x10000) return {static_cast<char>(0xe0 | c >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xf0 | c >> 18), tail(12), tail(6), tail(0)};
}

std::string Utf8Stream::Push(std::string_view bytes) {
  const std::string all = held_ + std::string(bytes);
  held_.clear();
  std::string out;
  for (std::string_view rest = all; !rest.empty();) {
    const Utf8Step step = NextUtf8(rest);
    if (step.kind == Utf8Step::kIncomplete) {
      held_ = rest;
      break;
    }
    out += step.kind == Utf8Step::kCodePoint ? rest.substr(0, static_cast<size_t>(step.bytes)) : kReplacement;
    rest.remove_prefix(static_cast<size_t>(step.bytes));
  }
  return out;
}

std::string Utf8Stream::Flush() {
  std::string out(held_.empty() ? std::string_view() : kReplacement);
  held_.clear();
  return out;
}

}  // namespace moe
