#pragma once
// JSON of unknown origin, as a value or one line that says what is wrong with it.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "moe/base/result.h"

namespace moe {

// Strict: one value, no comments, valid UTF-8, no key twice in one object, at most 64 levels deep. `where` names the text in
// errors.
Result<nlohmann::json> ParseJson(std::string_view text, const std::string& where);
Result<nlohmann::json> LoadJson(const std::string& path);

// A name from a file, safe inside a one-line message: control characters escaped, shortened if long.
std::string Printable(std::string_view name);

}  // namespace moe
