#include "moe/base/printable.h"

#include <fmt/format.h>

namespace moe {

std::string Printable(std::string_view name) {
  constexpr size_t kMaxShown = 120;
  std::string_view rest = name.substr(0, kMaxShown);
  while (rest.size() < name.size() && !rest.empty() && (name[rest.size()] & 0xc0) == 0x80)
    rest.remove_suffix(1);  // whole characters
  std::string shown;
  for (const char c : rest) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f)
      shown += fmt::format("\\x{:02x}", byte);
    else
      shown += c;
  }
  return rest.size() < name.size() ? shown + "..." : shown;
}

}  // namespace moe
