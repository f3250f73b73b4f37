#include "moe/train/training_data.h"

#include <algorithm>
#include <filesystem>
#include <iterator>

#include "moe/files/bpe_train.h"
#include "moe/files/text_file.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

// Paths in recipes are relative to the recipe, which may have been copied to another folder: that is said where one is missing.
Status CheckExists(const Recipe& recipe, const std::string& path) {
  std::error_code ignored;
  if (fs::status(path, ignored).type() != fs::file_type::not_found) return {};
  const fs::path corpus = fs::path(path).parent_path(), data = corpus.parent_path();
  const bool is_corpus = corpus.filename() == "debian-prose-1";
  std::string hint;
  if (is_corpus && data.filename() == "data" && fs::exists(data.parent_path() / "scripts/corpus.py", ignored)) {
    hint = "; scripts/corpus.py builds it";  // where it always does
  } else {
    if (const auto found = recipe.relative_paths.find(path); found != recipe.relative_paths.end()) hint = "; " + found->second;
    if (is_corpus) hint += fmt::format("; scripts/corpus.py --out {} builds it", data.string());
  }
  return Err(path, "cannot open: No such file or directory{}", hint);
}

Result<Tokenizer> MakeTokenizer(const Recipe& recipe, std::span<const std::string> texts, const std::string& where,
                                const std::function<void(const std::string&)>& on_note) {
  const int64_t vocab_size = recipe.tokenizer.vocab_size;
  switch (recipe.tokenizer.kind) {
    case TokenizerKind::kBytes:
      return Tokenizer::Bytes();
    case TokenizerKind::kFile:
      MOE_TRY(CheckExists(recipe, recipe.tokenizer.file));
      return Tokenizer::Load(recipe.tokenizer.file);
    case TokenizerKind::kBpe:
      break;
  }
  if (on_note) on_note(fmt::format("training a tokenizer of {} tokens", vocab_size));
  auto tokenizer = TrainBpe(texts, static_cast<int32_t>(vocab_size));
  if (!tokenizer) return Err(where + " tokenizer.vocab_size", "{}", tokenizer.error().what);
  if (tokenizer->vocab_size() < vocab_size && on_note) {
    on_note(fmt::format("the text has no more than {} tokens worth having", tokenizer->vocab_size()));
  }
  return tokenizer;
}

int64_t BytesOf(std::span<const int32_t> tokens, std::span<const int32_t> token_bytes) {
  int64_t bytes = 0;
  for (const int32_t token : tokens) bytes += token_bytes[static_cast<size_t>(token)];
  return bytes;
}

// As ReadTextFiles, but of files that end.
Result<std::vector<std::string>> ReadTexts(const Recipe& recipe, const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (fs::is_character_file(status) || fs::is_block_file(status)) return Err(path, "got a device, expected a text file");
    MOE_TRY(CheckExists(recipe, path));
  }
  return ReadTextFiles(paths);
}

// Where a passage may begin or end: after a line end among the `near` bytes that follow, or else before a code point.
size_t CutNear(std::string_view text, size_t at, size_t near) {
  if (at == 0 || at >= text.size()) return std::min(at, text.size());
  const size_t line_end = text.substr(at - 1, near).find('\n');
  if (line_end != std::string_view::npos) return at + line_end;
  while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) ++at;
  return at;
}

}  // namespace

CutText CutPassages(std::string_view text, double share) {
  constexpr double kPassageBytes = 4000, kSmallPassageBytes = 500, kFewPassages = 4, kLeastBytes = 16;
  const double bytes = share * static_cast<double>(text.size());
  CutText out;
  size_t kept = 0;  // all before is in a list
  if (bytes >= kLeastBytes) {
    const auto count =
        static_cast<size_t>(std::max({1.0, std::min(kFewPassages, bytes / kSmallPassageBytes), bytes / kPassageBytes}));
    const auto length = static_cast<size_t>(bytes / static_cast<double>(count));
    for (size_t i = 0; i < count; ++i) {
      const size_t middle = text.size() / count * i + text.size() / count / 2;
      const size_t begin = std::max(kept, CutNear(text, middle - std::min(middle, length / 2), length / 4));
      const size_t end = std::max(begin, CutNear(text, begin + length, length / 4));
      if (begin == end) continue;
      if (begin > kept) out.rest.emplace_back(text.substr(kept, begin - kept));
      out.passages.emplace_back(text.substr(begin, end - begin));
      kept = end;
    }
  }
  if (kept < text.size()) out.rest.emplace_back(text.substr(kept));
  return out;
}

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
  for (const std::string& path : data.validation) {
    const auto same = [&](const std::string& file) {  // also by a link
      std::error_code error;
      return file == path || fs::equivalent(file, path, error);
    };
    if (std::ranges::any_of(data.files, same)) {
      return Err(where + " data.validation", "got {}, expected text that is not among data.files too", path);
    }
  }
  MOE_TRY(std::vector<std::string> texts, ReadTexts(recipe, data.files));
  MOE_TRY(std::vector<std::string> validation_texts, ReadTexts(recipe, data.validation));
  bool is_cut = false;
  if (data.validation_share > 0) {
    std::vector<std::string> rest, passages;
    for (std::string& text : texts) {
      CutText cut = CutPassages(text, data.validation_share);
      std::ranges::move(cut.rest, std::back_inserter(rest));
      std::ranges::move(cut.passages, std::back_inserter(passages));
      text = std::string();  // `= {}` would keep its memory
    }
    texts = std::move(rest);
    is_cut = !passages.empty();
    if (data.validation.empty()) validation_texts = std::move(passages);
  }
  MOE_TRY(Tokenizer tokenizer,
          tokenizer_path.empty() ? MakeTokenizer(recipe, texts, where, on_note) : Tokenizer::Load(tokenizer_path));
  if (tokenizer.bos_id() < 0) {
    return Err(recipe.tokenizer.file, "got a tokenizer without a beginning-of-sequence token, expected one");
  }
  const bool cut = recipe.tokenizer.kind != TokenizerKind::kFile;
  TrainingData out{std::move(tokenizer)};
  out.train = Tokenize(texts, out.tokenizer, cut, pool);
  texts.clear();
  out.validation = Tokenize(validation_texts, out.tokenizer, cut, pool);
  for (int32_t id = 0; id < out.tokenizer.vocab_size(); ++id) {
    out.token_bytes.push_back(static_cast<int32_t>(out.tokenizer.TokenBytes(id).size()));
  }
  if (out.train.num_tokens < recipe.train.context) {
    return Err(data.files.front(), "got {} tokens of training text in {}{}, expected at least one window of train.context {}",
               out.train.num_tokens, data.files.size() == 1 ? "it" : fmt::format("{} files", data.files.size()),
               is_cut ? ", besides the validation text cut out of it (--set data.validation_share=0 keeps all)" : "",
               recipe.train.context);
  }
  if (is_cut && !data.validation.empty() && on_note) {
    on_note("not used: passages cut out of the text (data.validation_share), as data.validation is what is validated on");
  } else if (data.validation_share > 0 && data.validation.empty() && on_note) {
    on_note(out.validation.num_tokens == 0
                ? std::string("no validation: the text is too short to cut some out of it; --validation names another")
                : fmt::format("validating on {:.1f} % of the text in {} passages, cut out of it; --validation names other text",
                              100.0 * static_cast<double>(out.validation.num_bytes) /
                                  static_cast<double>(out.validation.num_bytes + out.train.num_bytes),
                              out.validation.documents.size()));
  }
  out.validation_documents = SpreadWindows(out.validation, out.token_bytes, recipe.model.context, recipe.train.eval_tokens);
  std::vector<std::span<const int32_t>> scored;
  for (const Document& document : out.validation_documents) scored.push_back(document.tokens);
  out.validation_digest = Digest(scored);
  return out;
}

}  // namespace moe
