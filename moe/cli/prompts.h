#pragma once
// Prompts of `moe generate`.

#include <string>
#include <vector>

#include "moe/base/result.h"

namespace moe {

// UTF-8 without NUL bytes; `where` names what is wrong.
Status CheckPromptText(const std::string& text, const std::string& where);
// One prompt per line; of a file that ends in .jsonl the "prompt" of one object per line. Lines of nothing are passed over.
// Errors name the line; a file without a prompt is one.
Result<std::vector<std::string>> ReadPrompts(const std::string& path);

}  // namespace moe
