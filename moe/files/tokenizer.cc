#include "moe/files/tokenizer.h"

#include <algorithm>

#include "moe/base/check.h"
#include "moe/files/json.h"
#include "moe/files/nfc.h"
#include "moe/files/utf8.h"

namespace moe {
namespace {

constexpr size_t kMaxCached = size_t{1} << 18;  // pieces remembered during one Encode

}  // namespace

size_t Tokenizer::Checked(int32_t id) const {
  MOE_CHECK(id >= 0 && id < vocab_size(), "token id {} of {}", id, vocab_size());
  return static_cast<size_t>(id);
}

template <class Fn>
void Tokenizer::EncodeAdded(std::string_view text, bool normalized, bool parse_special, std::vector<int32_t>& ids,
                            Fn encode_rest) const {
  const auto wanted = [&](const Added& added) { return added.normalized == normalized && (parse_special || !added.special); };
  std::array<bool, 256> starts_added{};
  for (const Added& added : added_)
    if (wanted(added)) starts_added[static_cast<uint8_t>(added.content[0])] = true;
  size_t plain = 0;  // text before here is encoded
  for (size_t at = 0; at < text.size(); ++at) {
    if (!starts_added[static_cast<uint8_t>(text[at])]) continue;
    const auto found = std::ranges::find_if(
        added_, [&](const Added& added) { return wanted(added) && text.substr(at).starts_with(added.content); });
    if (found == added_.end()) continue;
    encode_rest(text.substr(plain, at - plain));
    ids.push_back(found->id);
    plain = at + found->content.size();
    at = plain - 1;
  }
  encode_rest(text.substr(plain));
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, bool parse_special) const {
  std::vector<int32_t> ids;
  std::string storage;
  EncodeAdded(text, /*normalized=*/false, parse_special, ids, [&](std::string_view raw) {
    const std::string_view normal = nfc_ ? ToNfc(raw, storage) : raw;
    EncodeAdded(normal, /*normalized=*/true, parse_special, ids, [&](std::string_view rest) { EncodePlain(rest, ids); });
  });
  return ids;
}

void Tokenizer::EncodePlain(std::string_view text, std::vector<int32_t>& ids) const {
  struct Range {
    size_t begin, count;  // where in ids a piece was encoded before
  };
  std::unordered_map<std::string_view, Range> cache;
  pretokenizer_.Split(text, [&](std::string_view piece) {
    if (piece.size() == 1 || (num_merges_ == 0 && whole_pieces_.empty())) {
      for (const char c : piece) ids.push_back(byte_id_[static_cast<uint8_t>(c)]);
      return;
    }
    if (const auto known = cache.find(piece); known != cache.end()) {
      const auto [from, count] = known->second;
      for (size_t i = 0; i < count; ++i) ids.push_back(ids[from + i]);
      return;
    }
    const size_t begin = ids.size();
    const auto whole = whole_pieces_.empty() ? whole_pieces_.end() : whole_pieces_.find(std::string(piece));
    if (whole != whole_pieces_.end()) {
      ids.push_back(whole->second);
    } else {
      for (const char c : piece) ids.push_back(byte_id_[static_cast<uint8_t>(c)]);
      merges_.Apply(ids, begin);
    }
    if (cache.size() < kMaxCached) cache.emplace(piece, Range{begin, ids.size() - begin});
  });
}

std::string Tokenizer::Decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) text += TokenBytes(id);
  return text;
}

std::string Tokenizer::TokenName(int32_t id) const {
  const Token& token = tokens_[Checked(id)];
  if (!token.name.empty()) return Printable(token.name);
  std::string name;
  for (std::string_view rest = token.bytes; !rest.empty();) {
    const Utf8Step step = NextUtf8(rest);
    const auto bytes = rest.substr(0, static_cast<size_t>(step.bytes));
    const bool is_control = step.code_point < 0x20 || (step.code_point >= 0x7f && step.code_point < 0xa0);
    if (step.kind == Utf8Step::kCodePoint && !is_control) {
      name += bytes;
    } else {
      for (const char c : bytes)
        name += c == '\n' ? "\\n" : c == '\t' ? "\\t" : fmt::format("\\x{:02x}", static_cast<uint8_t>(c));
    }
    rest.remove_prefix(bytes.size());
  }
  return name;
}

}  // namespace moe
