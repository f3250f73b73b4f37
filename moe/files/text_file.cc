#include "moe/files/text_file.h"

#include "moe/files/atomic_file.h"
#include "moe/files/utf8.h"

namespace moe {

Result<std::string> ReadTextFile(const std::string& path) {
  MOE_TRY(std::string text, ReadFile(path));
  if (text.empty()) return Err(path, "is empty, expected UTF-8 text");
  if (const size_t nul = text.find('\0'); nul != std::string::npos)
    return Err(path, "is binary: got a NUL at byte {}, expected UTF-8 text", nul);
  if (const size_t valid = ValidUtf8Prefix(text); valid != text.size())
    return Err(path, "is not UTF-8: got 0x{:02x} at byte {}, expected UTF-8 text", static_cast<unsigned char>(text[valid]),
               valid);
  return text;
}

Result<std::vector<std::string>> ReadTextFiles(std::span<const std::string> paths) {
  std::vector<std::string> texts;
  for (const std::string& path : paths) {
    MOE_TRY(std::string text, ReadTextFile(path));
    texts.push_back(std::move(text));
  }
  return texts;
}

}  // namespace moe
