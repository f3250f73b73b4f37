#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "moe/files/tokenizer.h"
#include "moe/model/evaluate.h"
#include "moe/train/data.h"
#include "moe/train/recipe.h"

namespace moe {

// Everything a run reads: training text and validation text as tokens of one tokenizer.
struct TrainingData {
  Tokenizer tokenizer;
  Corpus train;
  Corpus validation;
  std::vector<int32_t> token_bytes;            // [V]
  std::vector<Document> validation_documents;  // what an evaluation scores; spans of `validation`
  std::string validation_digest;               // of their tokens

  int64_t validation_tokens() const;
  int64_t validation_bytes() const;
};

// tokenizer_path: of a run that is resumed; empty: what the recipe says, trained from the training text if need be. `where`
// names the recipe in errors, on_note (may be empty) hears of long work. Errors: files that are missing, empty, binary or not
// UTF-8; devices; less text than one window of the context; a file given for training and validation.
Result<TrainingData> LoadTrainingData(const Recipe& recipe, const std::string& where, const std::string& tokenizer_path,
                                      const std::function<void(const std::string&)>& on_note, ThreadPool& pool);

// Takes about `share` (up to 0.5) of a text out of it, as a few passages spread evenly, whole lines where lines are short. Both
// lists hold every byte of the text between them, in its order. A text of which that would be next to nothing stays whole.
struct CutText {
  std::vector<std::string> rest, passages;
};
CutText CutPassages(std::string_view text, double share);

// All documents; or, where max_tokens > 0 is less than there are, that many tokens in whole windows spread evenly over them.
// The windows are those that an evaluation of everything would score.
std::vector<Document> SpreadWindows(const Corpus& corpus, std::span<const int32_t> token_bytes, int64_t context,
                                    int64_t max_tokens);

}  // namespace moe
