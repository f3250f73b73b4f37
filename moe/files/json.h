#pragma once
// JSON of unknown origin, as a value or one line that says what is wrong with it.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "moe/base/printable.h"
#include "moe/base/result.h"

namespace moe {

// Strict: one value, no comments, valid UTF-8, no key twice in one object, at most 64 levels deep. `where` names the text in
// errors.
Result<nlohmann::json> ParseJson(std::string_view text, const std::string& where);
Result<nlohmann::json> LoadJson(const std::string& path);

}  // namespace moe
