#pragma once
// Text <-> token ids: plain bytes, or byte-level byte-pair encoding. On disk a Hugging Face tokenizer.json either way (docs of
// the format: https://huggingface.co/docs/tokenizers; bytes are a BPE without merges).
//
// Tokenizers that we make: ids 0..255 are the bytes, then the merges in order, then the specials <bos>, <eos>, <pad>. Those
// that we load keep the ids of their file.

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "moe/base/result.h"
#include "moe/files/bpe.h"
#include "moe/files/pretokenizer.h"

namespace moe {

inline constexpr int32_t kNumSpecials = 3;
inline constexpr int32_t kMaxVocab = 1 << 20;

inline constexpr int32_t kBytesVocabulary = 259;  // of Tokenizer::Bytes: 256 bytes, BOS, EOS, padding

class Tokenizer {
 public:
  static Tokenizer Bytes();  // vocab_size kBytesVocabulary
  // merges[i] makes token 256 + i of earlier ones (checked). To train them: bpe_train.h.
  static Tokenizer FromMerges(std::span<const BpeMerge> merges);

  // A tokenizer.json, or a folder that holds one (and perhaps a tokenizer_config.json, which names bos, eos and pad). Errors:
  // anything malformed, and what we would get wrong: other models than byte-level BPE, normalizers other than NFC, patterns
  // that PCRE2 does not take.
  static Result<Tokenizer> Load(const std::string& path);
  static Result<Tokenizer> FromJson(std::string json, const std::string& where);
  // To a folder: tokenizer.json and tokenizer_config.json. Else to the file `path`: the former. The same tokenizer gives the
  // same bytes.
  Status Save(const std::string& path) const;

  int32_t vocab_size() const { return static_cast<int32_t>(tokens_.size()); }  // the highest id + 1
  bool is_bytes() const { return num_merges_ == 0; }
  bool normalizes() const { return nfc_; }    // Encode takes text to NFC first (OLMoE, Qwen)
  int32_t bos_id() const { return bos_id_; }  // where a file names no bos token: eos_id (GPT-2, OLMo); -1 if it names neither
  int32_t eos_id() const { return eos_id_; }  // -1 if none
  int32_t pad_id() const { return pad_id_; }  // -1 if none
  bool IsSpecial(int32_t id) const { return tokens_[Checked(id)].special; }

  // Lossless: Decode(Encode(text)) == text for any bytes, also those that are not UTF-8; of a tokenizer that normalizes, the
  // text's NFC (nfc.h). Adds no bos. "<eos>" in the text is five characters unless parse_special. Threads may share it.
  std::vector<int32_t> Encode(std::string_view text, bool parse_special = false) const;
  // Ids in 0..vocab_size-1 (checked); specials have no bytes.
  std::string Decode(std::span<const int32_t> ids) const;
  std::string_view TokenBytes(int32_t id) const { return tokens_[Checked(id)].bytes; }
  // The token for people and for tables: specials by name, other bytes as valid UTF-8 without control characters.
  std::string TokenName(int32_t id) const;

  const std::string& json() const { return json_; }  // what Save writes

 private:
  friend struct TokenizerParser;
  struct Token {
    std::string bytes;     // "" for specials
    std::string name;      // of added tokens, as in the file
    bool special = false;  // never in text unless asked for
  };
  struct Added {  // matched in text before anything else, longest first; special ones only if asked for
    std::string content;
    int32_t id;
    bool special;
    bool normalized;  // matched in the text as normalized, after those that are matched in the text as it is
  };
  Tokenizer() = default;
  size_t Checked(int32_t id) const;
  // Calls encode_rest(text) for what lies between added tokens of one kind.
  template <class Fn>
  void EncodeAdded(std::string_view text, bool normalized, bool parse_special, std::vector<int32_t>& ids, Fn encode_rest) const;
  void EncodePlain(std::string_view text, std::vector<int32_t>& ids) const;  // text without added tokens

  std::vector<Token> tokens_;  // [V]
  std::array<int32_t, 256> byte_id_{};
  BpeMerges merges_;
  size_t num_merges_ = 0;
  bool nfc_ = false;
  Pretokenizer pretokenizer_;
  std::vector<Added> added_;                               // longest content first
  std::unordered_map<std::string, int32_t> whole_pieces_;  // for vocabularies that take a piece that is a token before merging
  int32_t bos_id_ = -1, eos_id_ = -1, pad_id_ = -1;
  std::string json_;
};

}  // namespace moe
