#include "moe/cli/prompts.h"

#include <nlohmann/json.hpp>

#include "moe/files/atomic_file.h"
#include "moe/files/utf8.h"

namespace moe {
namespace {

Result<std::string> PromptOfJson(const std::string& line, const std::string& where) {
  const auto json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object() || !json.contains("prompt") || !json["prompt"].is_string()) {
    return Err(where, R"(got no {{"prompt": TEXT}}, expected one per line)");
  }
  return json["prompt"].get<std::string>();
}

}  // namespace

Status CheckPromptText(const std::string& text, const std::string& where) {
  const size_t nul = text.find('\0');
  if (nul != std::string::npos) return Err(where, "got a NUL byte at byte {}, expected text", nul);
  const size_t valid = ValidUtf8Prefix(text);
  if (valid != text.size()) return Err(where, "got bytes that are not UTF-8 at byte {}, expected UTF-8 text", valid);
  return {};
}

Result<std::vector<std::string>> ReadPrompts(const std::string& path) {
  const auto text = ReadFile(path);
  if (!text) return Err(path, "{}", text.error().what);
  std::vector<std::string> prompts;
  int64_t number = 0;
  for (size_t begin = 0; begin < text->size();) {
    const size_t end = std::min(text->find('\n', begin), text->size());
    std::string line = text->substr(begin, end - begin);
    begin = end + 1, ++number;
    if (line.ends_with('\r')) line.pop_back();
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    const std::string where = fmt::format("{}:{}", path, number);
    if (path.ends_with(".jsonl")) {
      MOE_TRY(line, PromptOfJson(line, where));
    }
    MOE_TRY(CheckPromptText(line, where));
    prompts.push_back(std::move(line));
  }
  if (prompts.empty()) return Err(path, "got no prompt, expected one per line");
  return prompts;
}

}  // namespace moe
