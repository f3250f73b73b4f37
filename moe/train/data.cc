#include "moe/train/data.h"

#include <xxhash.h>

#include <algorithm>

#include "moe/base/check.h"
#include "moe/base/rng.h"

namespace moe {
namespace {

constexpr size_t kPieceBytes = size_t{1} << 20;

bool IsSpace(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

// The first place at or after `from` where a text may be cut; its end if none.
size_t NextCut(std::string_view text, size_t from) {
  for (size_t i = from; i + 1 < text.size(); ++i) {
    const auto next = static_cast<unsigned char>(text[i + 1]);
    if (text[i] == '\n' && next < 0x80 && !IsSpace(text[i + 1])) return i + 1;
  }
  return text.size();
}

// Fisher and Yates.
template <class T>
void Shuffle(std::span<T> items, Rng& rng) {
  for (int64_t i = std::ssize(items) - 1; i > 0; --i) {
    std::swap(items[static_cast<size_t>(i)], items[static_cast<size_t>(rng.Below(i + 1))]);
  }
}

// Streams of the seed: one per use, epoch and document.
enum class Use : uint64_t { kOrder = 1, kOffset = 2 };
uint64_t StreamOf(Use use, int64_t epoch, int64_t document) {
  return MixBits(MixBits(MixBits(static_cast<uint64_t>(use)) + static_cast<uint64_t>(epoch)) + static_cast<uint64_t>(document));
}

}  // namespace

Corpus Tokenize(std::span<const std::string> texts, const Tokenizer& tokenizer, bool cut, ThreadPool& pool) {
  struct Piece {
    size_t document;
    std::string_view text;
    std::vector<int32_t> tokens;
  };
  std::vector<Piece> pieces;
  for (size_t d = 0; d < texts.size(); ++d) {
    const std::string_view text = texts[d];
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = cut && text.size() - begin > kPieceBytes ? NextCut(text, begin + kPieceBytes) : text.size();
      pieces.push_back({d, text.substr(begin, end - begin), {}});
      begin = end;
    }
  }
  pool.ParallelFor(std::ssize(pieces), [&](int64_t i, int) {
    Piece& piece = pieces[static_cast<size_t>(i)];
    piece.tokens = tokenizer.Encode(piece.text);
  });

  Corpus corpus;
  corpus.documents.resize(texts.size());
  std::vector<size_t> sizes(texts.size());
  for (const Piece& piece : pieces) sizes[piece.document] += piece.tokens.size();
  for (Piece& piece : pieces) {
    auto& document = corpus.documents[piece.document];
    if (document.empty()) document.reserve(sizes[piece.document]);
    corpus.num_tokens += std::ssize(piece.tokens);
    corpus.num_bytes += std::ssize(piece.text);
    document.insert(document.end(), piece.tokens.begin(), piece.tokens.end());
    piece.tokens = std::vector<int32_t>();  // `= {}` would keep its memory
  }
  return corpus;
}

std::string Digest(std::span<const std::span<const int32_t>> documents) {
  XXH3_state_t* state = XXH3_createState();
  MOE_CHECK(state != nullptr);
  XXH3_64bits_reset(state);
  for (const auto& document : documents) {
    const uint64_t length = document.size();
    XXH3_64bits_update(state, &length, sizeof(length));
    XXH3_64bits_update(state, document.data(), document.size() * sizeof(int32_t));
  }
  const uint64_t digest = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  return fmt::format("{:016x}", digest);
}

std::string Digest(const Corpus& corpus) {
  return Digest(std::vector<std::span<const int32_t>>(corpus.documents.begin(), corpus.documents.end()));
}

DataStream::DataStream(const Corpus& corpus, int64_t context, int32_t bos_id, uint64_t seed)
    : corpus_(corpus), context_(context), bos_id_(bos_id), seed_(seed) {
  MOE_CHECK(context >= 1 && corpus.num_tokens > 0, "context {} tokens {}", context, corpus.num_tokens);
}

void DataStream::PrepareEpoch(int64_t epoch) {
  if (epoch == epoch_) return;
  epoch_ = epoch;
  windows_.clear();
  std::vector<Window> shorter;
  for (int64_t d = 0; d < std::ssize(corpus_.documents); ++d) {
    const int64_t size = std::ssize(corpus_.documents[static_cast<size_t>(d)]);
    const int64_t offset = Rng(seed_, StreamOf(Use::kOffset, epoch, d)).Below(context_);
    for (int64_t begin = 0; begin < size;) {
      const int64_t end = std::min(size, begin == 0 && offset > 0 ? offset : begin + context_);
      auto& list = end - begin == context_ ? windows_ : shorter;
      list.push_back({static_cast<int32_t>(d), static_cast<int32_t>(end - begin), begin});
      begin = end;
    }
  }
  Rng rng(seed_, StreamOf(Use::kOrder, epoch, 0));
  Shuffle(std::span(windows_), rng);
  Shuffle(std::span(shorter), rng);
  windows_.insert(windows_.end(), shorter.begin(), shorter.end());
  begin_of_.assign(1, 0);
  for (const Window& window : windows_) begin_of_.push_back(begin_of_.back() + window.length);
}

void DataStream::Read(int64_t position, int64_t count, Batch& batch) {
  MOE_CHECK(position >= 0 && count >= 0, "position {} count {}", position, count);
  batch.rows.clear();
  batch.targets.clear();
  for (int32_t sequence = 0; count > 0; ++sequence) {
    PrepareEpoch(position / corpus_.num_tokens);
    const int64_t in_epoch = position % corpus_.num_tokens;
    const auto next = std::ranges::upper_bound(begin_of_, in_epoch);
    const int64_t index = next - begin_of_.begin() - 1;
    const Window& window = windows_[static_cast<size_t>(index)];
    const int64_t skipped = in_epoch - begin_of_[static_cast<size_t>(index)];
    const int64_t length = std::min(count, window.length - skipped);
    const int32_t* tokens = corpus_.documents[static_cast<size_t>(window.document)].data() + window.begin + skipped;
    for (int64_t i = 0; i < length; ++i) {
      batch.rows.push_back(
          {.sequence = sequence, .position = static_cast<int32_t>(i), .token_id = i == 0 ? bos_id_ : tokens[i - 1]});
      batch.targets.push_back(tokens[i]);
    }
    position += length;
    count -= length;
  }
}

std::string Digest(const Tokenizer& tokenizer) {
  return fmt::format("{:016x}", XXH3_64bits(tokenizer.json().data(), tokenizer.json().size()));
}

}  // namespace moe
