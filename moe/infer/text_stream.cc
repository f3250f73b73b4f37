#include "moe/infer/text_stream.h"

#include <algorithm>

#include "moe/base/check.h"

namespace moe {
namespace {

// The most last bytes of text that are the beginning of a stop string.
size_t LongestBeginning(std::string_view text, const std::vector<std::string>& stops) {
  size_t longest = 0;
  for (const std::string& stop : stops) {
    for (size_t n = std::min(text.size(), stop.size() - 1); n > longest; --n) {
      if (std::string_view(stop).starts_with(text.substr(text.size() - n))) longest = n;
    }
  }
  return longest;
}

}  // namespace

TextStream::TextStream(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) MOE_CHECK(!stop.empty());
}

std::string TextStream::Push(std::string_view bytes) {
  if (stopped_) return "";
  held_ += bytes;
  // The stop string that is complete first ends the text, however the bytes were cut; of two, the longer.
  size_t certain = held_.size(), first_end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos || at + stop.size() > first_end) continue;
    certain = at + stop.size() == first_end ? std::min(certain, at) : at;
    first_end = at + stop.size();
  }
  stopped_ = first_end != std::string::npos;
  if (!stopped_) certain -= LongestBeginning(held_, stops_);
  std::string text = utf8_.Push(std::string_view(held_).substr(0, certain));
  held_.erase(0, certain);
  if (stopped_) text += utf8_.Flush();
  return text;
}

std::string TextStream::Flush() {
  if (stopped_) return "";
  std::string text = utf8_.Push(held_);
  held_.clear();
  return text += utf8_.Flush();
}

}  // namespace moe
