#pragma once
// What tests ask of texts and pages.

#include <string>

namespace moe::test {

// How often `part` stands in it.
inline size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

}  // namespace moe::test
