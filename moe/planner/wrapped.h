#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace moe {

// Breaks lines longer than a wide terminal between words; what goes on is indented. Runs of blanks at the start of a line stay.
std::string Wrapped(std::string_view text, size_t indent);

}  // namespace moe
