#pragma once

#include <span>
#include <string>
#include <vector>

#include "moe/base/result.h"

namespace moe {

// A UTF-8 text file, unchanged (a byte order mark stays). Errors: missing, a directory, empty, binary (holds a NUL byte), not
// UTF-8 (says where).
Result<std::string> ReadTextFile(const std::string& path);

// All of them, in order; the first error if any.
Result<std::vector<std::string>> ReadTextFiles(std::span<const std::string> paths);

}  // namespace moe
