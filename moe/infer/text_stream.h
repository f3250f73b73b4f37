#pragma once
// Tokens' bytes -> text that may be shown: no half of a code point, nothing of a stop string.

#include <string>
#include <string_view>
#include <vector>

#include "moe/files/utf8.h"

namespace moe {

class TextStream {
 public:
  // Stop strings are not empty (checked).
  explicit TextStream(std::vector<std::string> stops);

  // The text that is certain now. What may be the beginning of a stop string or of a code point is held back until more
  // arrives. Once a stop string is complete, it and all after it is gone for good.
  std::string Push(std::string_view bytes);
  std::string Flush();  // at the end: what was held back
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;  // shorter than the longest stop string
  Utf8Stream utf8_;
  bool stopped_ = false;
};

}  // namespace moe
