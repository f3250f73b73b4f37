#include "moe/train/training_data.h"

#include <algorithm>

#include "moe/files/bpe_train.h"
#include "moe/files/text_file.h"

namespace moe {
namespace {

Result<Tokenizer> MakeTokenizer(const TokenizerRecipe& recipe, std::span<const std::string> texts, const std::string& where,
                                const std::function<void(const std::string&)>& on_note) {
  switch (recipe.kind) {
    case TokenizerKind::kBytes:
      return Tokenizer::Bytes();
    case TokenizerKind::kFile:
      return Tokenizer::Load(recipe.file);
    case TokenizerKind::kBpe:
      break;
  }
  if (on_note) on_note(fmt::format("training a tokenizer of {} tokens", recipe.vocab_size));
  auto tokenizer = TrainBpe(texts, static_cast<int32_t>(recipe.vocab_size));
  if (!tokenizer) return Err(where + " tokenizer.vocab_size", "{}", tokenizer.error().what);
  if (tokenizer->vocab_size() < recipe.vocab_size && on_note) {
    on_note(fmt::format("the text has no more than {} tokens worth having", tokenizer->vocab_size()));
  }
  return tokenizer;
}

int64_t BytesOf(std::span<const int32_t> tokens, std::span<const int32_t> token_bytes) {
  int64_t bytes = 0;
  for (const int32_t token : tokens) bytes += token_bytes[static_cast<size_t>(token)];
  return bytes;
}

}  // namespace

int64_t TrainingData::validation_tokens() const {
  int64_t tokens = 0;
  for (const Document& document : validation_documents) tokens += std::ssize(document.tokens);
  return tokens;
}
int64_t TrainingData::validation_bytes() const {
  int64_t bytes = 0;
  for (const Document& document : validation_documents) bytes += document.num_bytes;
  return bytes;
}

std::vector<Document> SpreadWindows(const Corpus& corpus, std::span<const int32_t> token_bytes, int64_t context,
                                    int64_t max_tokens) {
  std::vector<Document> documents;
  if (max_tokens <= 0 || max_tokens >= corpus.num_tokens) {
    for (const auto& tokens : corpus.documents) documents.push_back({tokens, BytesOf(tokens, token_bytes)});
    return documents;
  }
  for (const std::span<const int32_t> tokens : corpus.documents) {
    for (size_t begin = 0; begin < tokens.size(); begin += static_cast<size_t>(context)) {
      const auto window = tokens.subspan(begin, std::min(static_cast<size_t>(context), tokens.size() - begin));
      documents.push_back({window, BytesOf(window, token_bytes)});
    }
  }
  const int64_t all = std::ssize(documents), wanted = std::clamp<int64_t>(max_tokens / context, 1, all);
  for (int64_t i = 0; i < wanted; ++i)
    documents[static_cast<size_t>(i)] = documents[static_cast<size_t>((2 * i + 1) * all / (2 * wanted))];
  documents.resize(static_cast<size_t>(wanted));
  return documents;
}

Result<TrainingData> LoadTrainingData(const Recipe& recipe, const std::string& where, const std::string& tokenizer_path,
                                      const std::function<void(const std::string&)>& on_note, ThreadPool& pool) {
  const DataRecipe& data = recipe.data;
  if (data.files.empty()) return Err(where + " data.files", "got no file, expected training text (also: --data FILE)");
  for (const std::string& path : data.validation) {
    if (std::ranges::find(data.files, path) != data.files.end()) {
      return Err(where + " data.validation", "got {}, expected text that is not among data.files too", path);
    }
  }
  MOE_TRY(std::vector<std::string> texts, ReadTextFiles(data.files));
  MOE_TRY(const std::vector<std::string> validation_texts, ReadTextFiles(data.validation));
  MOE_TRY(Tokenizer tokenizer,
          tokenizer_path.empty() ? MakeTokenizer(recipe.tokenizer, texts, where, on_note) : Tokenizer::Load(tokenizer_path));
  if (tokenizer.bos_id() < 0) {
    return Err(recipe.tokenizer.file, "got a tokenizer without a beginning-of-sequence token, expected one");
  }
  const bool cut = recipe.tokenizer.kind != TokenizerKind::kFile;
  TrainingData out{std::move(tokenizer)};
  out.train = Tokenize(texts, out.tokenizer, cut, pool);
  texts = {};
  out.validation = Tokenize(validation_texts, out.tokenizer, cut, pool);
  for (int32_t id = 0; id < out.tokenizer.vocab_size(); ++id) {
    out.token_bytes.push_back(static_cast<int32_t>(out.tokenizer.TokenBytes(id).size()));
  }
  if (out.train.num_tokens < recipe.train.context) {
    return Err(data.files.front(), "got {} tokens of training text in {}, expected at least one window of train.context {}",
               out.train.num_tokens, data.files.size() == 1 ? "it" : fmt::format("{} files", data.files.size()),
               recipe.train.context);
  }
  out.validation_documents = SpreadWindows(out.validation, out.token_bytes, recipe.model.context, recipe.train.eval_tokens);
  return out;
}

}  // namespace moe
