#include "moe/files/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "moe/base/check.h"
#include "moe/files/utf8.h"

namespace moe {
namespace {

// Code points below are in NFC and never compose with what stands before them: text may be cut there.
constexpr uint32_t kFirstThatMayChange = 0x300;
// Nor does this one, a Hangul filler that utf8proc 2.8 would swallow after a syllable: its index of final consonants begins
// at 1.
constexpr uint32_t kHangulNoFinal = 0x11a7;
constexpr unsigned char kFirstLeadByte = 0xcc;  // of that code point
constexpr auto kNfc = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);

int CombiningClass(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

// utf8proc_decompose would sort marks in quadratic time, which a long row of them could exploit.
void SortMarks(std::vector<utf8proc_int32_t>& code_points) {
  const auto is_mark = [](utf8proc_int32_t c) { return CombiningClass(c) != 0; };
  for (auto begin = code_points.begin(); begin != code_points.end();) {
    begin = std::find_if(begin, code_points.end(), is_mark);
    const auto end = std::find_if_not(begin, code_points.end(), is_mark);
    std::stable_sort(begin, end, [](auto a, auto b) { return CombiningClass(a) < CombiningClass(b); });
    begin = end;
  }
}

// Valid UTF-8, appended in NFC.
void Append(std::string_view text, std::vector<utf8proc_int32_t>& code_points, std::string& out) {
  code_points.clear();
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    utf8proc_int32_t parts[8];  // a canonical decomposition has at most four
    const auto code_point = static_cast<utf8proc_int32_t>(step.code_point);
    const auto count = utf8proc_decompose_char(code_point, parts, std::ssize(parts), kNfc, nullptr);
    MOE_CHECK(count > 0 && count <= std::ssize(parts), "U+{:04X} decomposes into {} code points", code_point, count);
    code_points.insert(code_points.end(), parts, parts + count);
    text.remove_prefix(static_cast<size_t>(step.bytes));
  }
  SortMarks(code_points);
  const auto length = utf8proc_normalize_utf32(code_points.data(), std::ssize(code_points), kNfc);
  MOE_CHECK(length > 0, "got {} code points from {}", length, code_points.size());
  for (utf8proc_ssize_t i = 0; i < length; ++i) out += EncodeUtf8(static_cast<uint32_t>(code_points[static_cast<size_t>(i)]));
}

// Where the code point begins that ends at `at`, looking back no further than `from`; `at` where none does.
size_t CodePointBefore(std::string_view text, size_t from, size_t at) {
  size_t begin = at;
  while (begin > from && at - begin < 4) {
    --begin;
    if ((static_cast<unsigned char>(text[begin]) & 0xc0) == 0x80) continue;
    const Utf8Step step = NextUtf8(text.substr(begin, at - begin));
    return step.kind == Utf8Step::kCodePoint && static_cast<size_t>(step.bytes) == at - begin ? begin : at;
  }
  return at;
}

}  // namespace

std::string_view ToNfc(std::string_view text, std::string& storage) {
  storage.clear();
  std::vector<utf8proc_int32_t> code_points;
  size_t done = 0;  // all before is in storage
  for (size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < kFirstLeadByte) {
      ++at;
      continue;
    }
    const Utf8Step step = NextUtf8(text.substr(at));
    const size_t first = at;
    at += static_cast<size_t>(step.bytes);
    if (step.kind != Utf8Step::kCodePoint) continue;
    // From the code point before, which may take up the first mark, to the next one that begins anew.
    const size_t begin = CodePointBefore(text, done, first);
    while (at < text.size()) {
      const Utf8Step more = NextUtf8(text.substr(at));
      if (more.kind != Utf8Step::kCodePoint) break;
      if (more.code_point < kFirstThatMayChange || more.code_point == kHangulNoFinal) break;
      at += static_cast<size_t>(more.bytes);
    }
    storage += text.substr(done, begin - done);
    Append(text.substr(begin, at - begin), code_points, storage);
    done = at;
  }
  if (done == 0) return text;
  storage += text.substr(done);
  return storage;
}

}  // namespace moe
