#include "moe/cli/text_tokens.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "moe/base/progress.h"
#include "moe/files/text_file.h"
#include "moe/files/utf8.h"

namespace moe {
namespace {

constexpr int64_t kMostBytesPerToken = 32;  // of text that is read for a token that is wanted

Result<TokenizedText> ReadText(const std::string& path) {
  const bool standard = path == "-";
  auto bytes = ReadTextFile(standard ? "/dev/stdin" : path);
  if (!bytes && standard) bytes.error().where = "stdin";
  if (!bytes) return tl::make_unexpected(bytes.error());
  return TokenizedText{standard ? "stdin" : path, std::move(*bytes), {}};
}

}  // namespace

Result<std::vector<TokenizedText>> ReadTexts(const std::vector<std::string>& paths, const Tokenizer& tokenizer,
                                             int64_t wanted) {
  std::vector<TokenizedText> texts;
  for (const std::string& path : paths) {
    MOE_TRY(texts.emplace_back(), ReadText(path));
  }
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto left = static_cast<int64_t>(texts.size() - i);
    const auto share = static_cast<size_t>(std::max<int64_t>((wanted + left - 1) / left, 0));
    std::string& bytes = texts[i].bytes;
    if (const size_t most = share * kMostBytesPerToken; bytes.size() > most) {
      bytes.resize(ValidUtf8Prefix(std::string_view(bytes).substr(0, most)));
    }
    texts[i].tokens = tokenizer.Encode(bytes);
    texts[i].tokens.resize(std::min(texts[i].tokens.size(), share));
    wanted -= std::ssize(texts[i].tokens);
  }
  return texts;
}

std::vector<Document> DocumentsOf(const Tokenizer& tokenizer, const std::vector<TokenizedText>& texts) {
  std::vector<Document> documents;
  for (const TokenizedText& text : texts) {
    int64_t bytes = 0;
    for (const int32_t token : text.tokens) bytes += std::ssize(tokenizer.TokenBytes(token));
    documents.push_back({.tokens = text.tokens, .num_bytes = bytes});
  }
  return documents;
}

std::string TokensProgress(const char* what, int64_t done, int64_t total, double seconds) {
  const double share = static_cast<double>(done) / static_cast<double>(total);
  return fmt::format("{} {} {:3.0f} %  {}  {} left", what, ProgressBar(share, 20), share * 100,
                     FormatRate(static_cast<double>(done) / seconds, " tokens"), FormatSeconds(seconds / share - seconds));
}

}  // namespace moe
