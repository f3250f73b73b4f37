#pragma once
// Cuts text into the pieces that byte-pair merges never cross: words, numbers, runs of spaces.

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/base/result.h"

namespace moe {

// GPT-2's pattern (https://github.com/openai/gpt-2/blob/master/src/encoder.py), which Hugging Face's ByteLevel applies too.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// One or more patterns, each applied to the pieces that the one before left; what a pattern matches and what lies between two
// matches are pieces. Immutable, shared by threads.
class Pretokenizer {
 public:
  // Errors: a pattern that PCRE2 does not take.
  static Result<Pretokenizer> Create(std::span<const std::string> patterns, const std::string& where);

  // Calls emit for every piece, in order; together they are the text, whatever it is. Bytes that are not UTF-8 are pieces of
  // their own, one for each run of them, so that the pieces around them are what they would be without. No patterns: one piece.
  using Emit = std::function<void(std::string_view piece)>;
  void Split(std::string_view text, const Emit& emit) const;

 private:
  std::vector<std::shared_ptr<const void>> patterns_;  // compiled
};

}  // namespace moe
