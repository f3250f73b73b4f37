#pragma once
// UTF-8 (RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF).

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace moe {

// What stands at the start of some bytes: one whole code point; or bytes that no continuation can make one (`bytes` of them, up
// to where a new one may start); or the beginning of one that the end of the text cuts off.
struct Utf8Step {
  enum Kind { kCodePoint, kInvalid, kIncomplete } kind;
  int bytes;            // >= 1
  uint32_t code_point;  // of kCodePoint
};
Utf8Step NextUtf8(std::string_view text);  // text is not empty

// The length of the longest prefix that is valid UTF-8: text.size() if all is.
size_t ValidUtf8Prefix(std::string_view text);

std::string EncodeUtf8(uint32_t code_point);

// Text that arrives in pieces cut anywhere, as tokens do. Gives it out in whole code points: the beginning of one is held back
// until the rest arrives; bytes that can never become one come out as U+FFFD.
class Utf8Stream {
 public:
  std::string Push(std::string_view bytes);
  std::string Flush();  // at the end: U+FFFD if a code point is unfinished

 private:
  std::string held_;  // at most 3 bytes
};

}  // namespace moe
