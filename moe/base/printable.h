#pragma once

#include <string>
#include <string_view>

namespace moe {

// A name from a file, safe inside a one-line message: control characters escaped, shortened if long.
std::string Printable(std::string_view name);

}  // namespace moe
