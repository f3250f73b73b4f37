#include "moe/planner/wrapped.h"

#include <algorithm>

namespace moe {

std::string Wrapped(std::string_view text, size_t indent) {
  constexpr size_t kColumns = 112;
  std::string out;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, end - begin);
    for (size_t room = kColumns; line.size() > room; room = kColumns - indent) {
      const size_t blank = line.rfind(' ', room);
      if (blank == std::string_view::npos || blank <= indent) break;  // a word longer than the line
      out += std::string(line.substr(0, blank)) + "\n" + std::string(indent, ' ');
      line.remove_prefix(blank + 1);
    }
    out += line;
    out += '\n';
    begin = end + 1;
  }
  return out;
}

}  // namespace moe
