#pragma once
// Texts that a model is run over: read, tokenized, and how far that is.

#include <cstdint>
#include <string>
#include <vector>

#include "moe/base/result.h"
#include "moe/files/tokenizer.h"
#include "moe/model/evaluate.h"

namespace moe {

inline constexpr int64_t kMostTokens = int64_t{1} << 30;  // of --tokens

struct TokenizedText {
  std::string name, bytes;
  std::vector<int32_t> tokens;
};
// "-": stdin. They share the tokens that are wanted; what a short one leaves goes to those after it. Errors: a file that cannot
// be read, is empty or is no UTF-8.
Result<std::vector<TokenizedText>> ReadTexts(const std::vector<std::string>& paths, const Tokenizer& tokenizer, int64_t wanted);
// They look at the texts.
std::vector<Document> DocumentsOf(const Tokenizer& tokenizer, const std::vector<TokenizedText>& texts);

// "route ━━━─── 50 %  1.63 k tokens/s  12 s left"
std::string TokensProgress(const char* what, int64_t done, int64_t total, double seconds);

}  // namespace moe
