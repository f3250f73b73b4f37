// tokenizer.json: reading, and writing the ones that we make.

#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "moe/base/check.h"
#include "moe/files/atomic_file.h"
#include "moe/files/json.h"
#include "moe/files/nfc.h"
#include "moe/files/tokenizer.h"
#include "moe/files/utf8.h"

namespace moe {
namespace {

using Json = nlohmann::json;

// GPT-2 spells every byte as a printable character: itself where it is one in Latin-1, else one of U+0100, U+0101, ... in turn.
struct ByteAlphabet {
  std::array<std::string, 256> spelling;
  std::array<int, 0x144> byte_of;  // code point -> byte, -1 if none

  ByteAlphabet() {
    byte_of.fill(-1);
    uint32_t next = 0x100;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool is_itself = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
      const uint32_t code_point = is_itself ? byte : next++;
      spelling[byte] = EncodeUtf8(code_point);
      byte_of[code_point] = static_cast<int>(byte);
    }
  }
};

const ByteAlphabet& Alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

std::string Spell(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) out += Alphabet().spelling[static_cast<uint8_t>(c)];
  return out;
}

std::optional<std::string> Unspell(std::string_view spelled) {
  std::string bytes;
  while (!spelled.empty()) {
    const Utf8Step step = NextUtf8(spelled);
    if (step.kind != Utf8Step::kCodePoint || step.code_point >= Alphabet().byte_of.size()) return std::nullopt;
    const int byte = Alphabet().byte_of[step.code_point];
    if (byte < 0) return std::nullopt;
    bytes += static_cast<char>(byte);
    spelled.remove_prefix(static_cast<size_t>(step.bytes));
  }
  return bytes;
}

// object[key], or null where there is none.
const Json& Field(const Json& object, const char* key) {
  static const Json null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

bool IsTrue(const Json& object, const char* key) {
  const Json& value = Field(object, key);
  return value.is_boolean() && value.get<bool>();
}

std::string TextOf(const Json& object, const char* key) {
  const Json& value = Field(object, key);
  return value.is_string() ? value.get<std::string>() : "";
}

std::string TypeOf(const Json& part) {
  return part.is_object() ? TextOf(part, "type") : "";
}

constexpr const char* kBosNames[] = {"<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>"};
constexpr const char* kEosNames[] = {"<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>"};
constexpr const char* kPadNames[] = {"<pad>", "<|padding|>", "<|pad|>"};

}  // namespace

struct TokenizerParser {
  std::string where;
  Tokenizer out;
  std::unordered_map<std::string, int32_t> id_of;  // spelled, as in the file

  Status Parse(const Json& root) {
    if (!root.is_object()) return Err(where, "is {}, expected a tokenizer.json object", root.type_name());
    MOE_TRY(ParseNormalizer(Field(root, "normalizer")));
    const Json& model = Field(root, "model");
    if (TypeOf(model) != "BPE")
      return Err(where, "has a model of type '{}', expected BPE (byte-level)", Printable(TypeOf(model)));
    if (IsTrue(model, "byte_fallback")) return Err(where, "is a SentencePiece BPE (byte_fallback), expected a byte-level one");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (!TextOf(model, key).empty()) return Err(where, "has a {}, expected none: not a byte-level BPE", key);
    if (const Json& dropout = Field(model, "dropout"); dropout.is_number() && dropout.get<double>() != 0)
      return Err(where, "has dropout {}, expected none", dropout.get<double>());
    MOE_TRY(ParsePretokenizer(Field(root, "pre_tokenizer")));
    MOE_TRY(ParseVocabulary(Field(model, "vocab"), Field(root, "added_tokens")));
    MOE_TRY(ParseMerges(Field(model, "merges")));
    if (IsTrue(model, "ignore_merges"))
      for (const auto& [spelled, id] : id_of)
        if (!out.tokens_[static_cast<size_t>(id)].bytes.empty()) out.whole_pieces_[BytesOf(id)] = id;
    out.bos_id_ = FindNamed(kBosNames);
    out.eos_id_ = FindNamed(kEosNames);
    out.pad_id_ = FindNamed(kPadNames);
    if (out.bos_id_ < 0) out.bos_id_ = out.eos_id_;
    return {};
  }

  // None, or NFC, which may stand in a Sequence.
  Status ParseNormalizer(const Json& normalizer) {
    const std::string type = TypeOf(normalizer);
    if (normalizer.is_null() || type == "NFC") {
      out.nfc_ |= type == "NFC";
      return {};
    }
    const Json& list = Field(normalizer, "normalizers");
    if (type != "Sequence" || !list.is_array())
      return Err(where, "has a normalizer ({}), expected none or NFC: it would change the text", Printable(type));
    for (const Json& step : list) {
      if (TypeOf(step) == "Sequence") return Err(where, "has a Sequence of normalizers in another, expected one");
      MOE_TRY(ParseNormalizer(step));
    }
    return {};
  }

  // ByteLevel, or Split by regular expressions and then ByteLevel.
  Status ParsePretokenizer(const Json& root) {
    const bool is_sequence = TypeOf(root) == "Sequence";
    const Json& list = is_sequence ? Field(root, "pretokenizers") : root;
    const Json steps = is_sequence ? list : Json::array({root});
    if (!steps.is_array()) return Err(where, "has a pre_tokenizer Sequence without a list");
    std::vector<std::string> patterns;
    bool byte_level = false;
    for (const Json& step : steps) {
      const std::string type = TypeOf(step);
      if (byte_level) return Err(where, "has pre_tokenizer '{}' after ByteLevel, expected ByteLevel last", Printable(type));
      if (type == "ByteLevel") {
        if (IsTrue(step, "add_prefix_space"))
          return Err(where, "has add_prefix_space, expected false: it would change the text");
        byte_level = true;
        if (!Field(step, "use_regex").is_boolean() || IsTrue(step, "use_regex")) patterns.emplace_back(kGpt2Pattern);
      } else if (type == "Split") {
        // Removed + invert keeps what matches, as Isolated does; the patterns in use match everything, so nothing is lost.
        const std::string behavior = TextOf(step, "behavior");
        if (!(behavior == "Isolated" && !IsTrue(step, "invert")) && !(behavior == "Removed" && IsTrue(step, "invert")))
          return Err(where, "has a Split with behavior '{}', expected Isolated", Printable(behavior));
        const Json& pattern = Field(step, "pattern");
        if (!pattern.is_object() || !Field(pattern, "Regex").is_string())
          return Err(where, "has a Split without a Regex, expected one");
        patterns.push_back(TextOf(pattern, "Regex"));
      } else {
        return Err(where, "has pre_tokenizer '{}', expected ByteLevel or Split", Printable(type));
      }
    }
    if (!byte_level) return Err(where, "has no ByteLevel pre_tokenizer, expected one: not a byte-level BPE");
    MOE_TRY(out.pretokenizer_, Pretokenizer::Create(patterns, where));
    return {};
  }

  Status Place(int32_t id, std::string_view content, Tokenizer::Token token) {
    if (static_cast<size_t>(id) >= out.tokens_.size()) out.tokens_.resize(static_cast<size_t>(id) + 1);
    Tokenizer::Token& place = out.tokens_[static_cast<size_t>(id)];
    if (!place.bytes.empty() || !place.name.empty())
      return Err(where, "token '{}': has id {}, as another one has", Printable(content), id);
    place = std::move(token);
    return {};
  }

  Result<int32_t> IdOf(std::string_view content, const Json& value) {
    if (!value.is_number_unsigned() || value.get<uint64_t>() >= static_cast<uint64_t>(kMaxVocab))
      return Err(where, "token '{}': got id {}, expected 0 to {}", Printable(content), Printable(value.dump()), kMaxVocab - 1);
    return value.get<int32_t>();
  }

  Status ParseVocabulary(const Json& vocab, const Json& added) {
    if (!vocab.is_object()) return Err(where, "has a vocab of type {}, expected an object of token: id", vocab.type_name());
    if (!added.is_null() && !added.is_array())
      return Err(where, "has added_tokens of type {}, expected a list", added.type_name());
    for (const Json& entry : added) {
      if (!entry.is_object()) return Err(where, "has an added token of type {}, expected an object", entry.type_name());
      const std::string content = TextOf(entry, "content");
      if (content.empty()) return Err(where, "has an added token without content");
      for (const char* key : {"single_word", "lstrip", "rstrip"})
        if (IsTrue(entry, key)) return Err(where, "added token '{}': has {}, expected false", Printable(content), key);
      MOE_TRY(const int32_t id, IdOf(content, Field(entry, "id")));
      const auto known = vocab.find(content);
      if (known != vocab.end() && *known != id)
        return Err(where, "added token '{}': has id {}, expected {} as in the vocab", Printable(content), id,
                   Printable(known->dump()));
      if (id_of.contains(content)) return Err(where, "added token '{}': is there twice", Printable(content));
      const bool special = IsTrue(entry, "special");
      const bool normalized = Field(entry, "normalized").is_boolean() ? IsTrue(entry, "normalized") : !special;
      std::string storage;
      const std::string matched(out.nfc_ && normalized ? ToNfc(content, storage) : content);
      MOE_TRY(Place(id, content, {special ? "" : matched, content, special}));
      out.added_.push_back({matched, id, special, normalized});
      id_of[content] = id;
    }
    std::ranges::stable_sort(out.added_, std::greater<>(), [](const auto& token) { return token.content.size(); });
    for (const auto& [spelled, value] : vocab.items()) {
      MOE_TRY(const int32_t id, IdOf(spelled, value));
      if (id_of.contains(spelled)) continue;  // an added token
      const std::optional<std::string> bytes = Unspell(spelled);
      if (!bytes || bytes->empty())
        return Err(where, "token '{}': is not spelled in GPT-2's byte alphabet, expected a byte-level vocabulary",
                   Printable(spelled));
      MOE_TRY(Place(id, spelled, {*bytes, "", false}));
      id_of[spelled] = id;
    }
    for (int byte = 0; byte < 256; ++byte) {
      const auto found = id_of.find(Alphabet().spelling[static_cast<size_t>(byte)]);
      if (found == id_of.end() || out.IsSpecial(found->second))
        return Err(where, "has no token for byte 0x{:02x}, expected all 256", byte);
      out.byte_id_[static_cast<size_t>(byte)] = found->second;
    }
    return {};
  }

  const std::string& BytesOf(int32_t id) const { return out.tokens_[static_cast<size_t>(id)].bytes; }

  Status ParseMerges(const Json& list) {
    if (!list.is_array()) return Err(where, "has merges of type {}, expected a list", list.type_name());
    std::vector<BpeMerge> merges;
    std::unordered_map<uint64_t, size_t> seen;
    for (const Json& entry : list) {
      std::string left, right;
      if (entry.is_string()) {
        const std::string& text = entry.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space != std::string::npos) left = text.substr(0, space), right = text.substr(space + 1);
      } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
        left = entry[0].get<std::string>(), right = entry[1].get<std::string>();
      }
      const auto merge_err = [&](std::string_view what) {
        return Err(where, "merge {} ({}): {}", merges.size(), Printable(entry.dump()), what);
      };
      if (left.empty() || right.empty()) return merge_err("expected \"a b\" or [\"a\", \"b\"]");
      const auto l = id_of.find(left), r = id_of.find(right), joined = id_of.find(left + right);
      if (l == id_of.end() || r == id_of.end() || joined == id_of.end())
        return merge_err("both parts and the whole must be tokens");
      if (BytesOf(joined->second) != BytesOf(l->second) + BytesOf(r->second))
        return merge_err("the whole is another added token");
      const uint64_t key = static_cast<uint64_t>(l->second) << 32 | static_cast<uint64_t>(r->second);
      if (!seen.emplace(key, merges.size()).second) return merge_err("is there twice");
      merges.push_back({l->second, r->second, joined->second});
    }
    out.num_merges_ = merges.size();
    out.merges_ = BpeMerges(merges);
    return {};
  }

  int32_t FindNamed(std::span<const char* const> names) const {
    for (const char* name : names)
      for (const auto& added : out.added_)
        if (out.tokens_[static_cast<size_t>(added.id)].name == name) return added.id;
    return -1;
  }

  // tokenizer_config.json says which tokens are bos, eos and pad: as a string, or as an object with its content.
  Status ParseConfig(const Json& config, const std::string& config_path) {
    if (!config.is_object()) return Err(config_path, "is {}, expected an object", config.type_name());
    const auto named = [&](const char* key, int32_t* id) -> Status {
      const Json& value = Field(config, key);
      if (value.is_null()) return {};
      const std::string content = value.is_object() ? TextOf(value, "content") : TextOf(config, key);
      const char* const names[] = {content.c_str()};
      *id = FindNamed(names);
      if (*id < 0) return Err(config_path, "{} is '{}', expected an added token of tokenizer.json", key, Printable(content));
      return {};
    };
    MOE_TRY(named("eos_token", &out.eos_id_));
    const Json& bos = Field(config, "bos_token");
    if (bos.is_null() && config.contains("eos_token")) out.bos_id_ = out.eos_id_;
    MOE_TRY(named("bos_token", &out.bos_id_));
    return named("pad_token", &out.pad_id_);
  }
};

Result<Tokenizer> Tokenizer::FromJson(std::string json, const std::string& where) {
  MOE_TRY(const Json root, ParseJson(json, where));
  TokenizerParser parser{.where = where, .out = Tokenizer(), .id_of = {}};
  MOE_TRY(parser.Parse(root));
  parser.out.json_ = std::move(json);
  return std::move(parser.out);
}

Result<Tokenizer> Tokenizer::Load(const std::string& path) {
  struct stat info;
  const bool is_folder = stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
  const std::string file = is_folder ? path + "/tokenizer.json" : path, config = path + "/tokenizer_config.json";
  MOE_TRY(std::string json, ReadFile(file));
  MOE_TRY(Tokenizer tokenizer, FromJson(std::move(json), file));
  if (!is_folder || stat(config.c_str(), &info) != 0) return tokenizer;
  MOE_TRY(const Json root, LoadJson(config));
  TokenizerParser parser{.where = file, .out = std::move(tokenizer), .id_of = {}};
  MOE_TRY(parser.ParseConfig(root, config));
  return std::move(parser.out);
}

Status Tokenizer::Save(const std::string& path) const {
  struct stat info;
  if (stat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) return WriteFileAtomically(path, json_);
  nlohmann::ordered_json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  const auto name = [&](const char* key, int32_t id) {
    if (id >= 0) config[key] = tokens_[static_cast<size_t>(id)].name;
  };
  name("bos_token", bos_id_);
  name("eos_token", eos_id_);
  name("pad_token", pad_id_);
  MOE_TRY(WriteFileAtomically(path + "/tokenizer.json", json_));
  return WriteFileAtomically(path + "/tokenizer_config.json", config.dump(2) + "\n");
}

Tokenizer Tokenizer::Bytes() {
  return FromMerges({});
}

Tokenizer Tokenizer::FromMerges(std::span<const BpeMerge> merges) {
  std::vector<std::string> bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(1, static_cast<char>(byte));
  std::string vocab, rules;
  const auto line = [](std::string& list, const std::string& entry) {
    list += (list.empty() ? "\n      " : ",\n      ") + entry;
  };
  for (const BpeMerge& merge : merges) {
    const auto size = static_cast<int32_t>(bytes.size());
    MOE_CHECK(merge.left >= 0 && merge.left < size && merge.right >= 0 && merge.right < size && merge.result == size,
              "merge ({}, {}) -> {} of {}", merge.left, merge.right, merge.result, size);
    const std::string &left = bytes[static_cast<size_t>(merge.left)], &right = bytes[static_cast<size_t>(merge.right)];
    line(rules, Json(Spell(left) + " " + Spell(right)).dump());
    bytes.push_back(left + right);
  }
  for (size_t id = 0; id < bytes.size(); ++id) line(vocab, fmt::format("{}: {}", Json(Spell(bytes[id])).dump(), id));
  const size_t bos = bytes.size(), eos = bos + 1, pad = bos + 2;
  std::string added;
  for (const auto& [id, content] : {std::pair(bos, "<bos>"), std::pair(eos, "<eos>"), std::pair(pad, "<pad>")})
    added += fmt::format(R"({}
    {{"id": {}, "content": "{}", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}})",
                         added.empty() ? "" : ",", id, content);
  const bool use_regex = !merges.empty();
  std::string json = fmt::format(
      R"({{
  "version": "1.0",
  "truncation": null,
  "padding": null,
  "added_tokens": [{}
  ],
  "normalizer": null,
  "pre_tokenizer": {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": {}}},
  "post_processor": {{
    "type": "TemplateProcessing",
    "single": [{{"SpecialToken": {{"id": "<bos>", "type_id": 0}}}}, {{"Sequence": {{"id": "A", "type_id": 0}}}}],
    "pair": [{{"SpecialToken": {{"id": "<bos>", "type_id": 0}}}}, {{"Sequence": {{"id": "A", "type_id": 0}}}}, {{"Sequence": {{"id": "B", "type_id": 1}}}}],
    "special_tokens": {{"<bos>": {{"id": "<bos>", "ids": [{}], "tokens": ["<bos>"]}}}}
  }},
  "decoder": {{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}},
  "model": {{
    "type": "BPE",
    "dropout": null,
    "unk_token": null,
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": false,
    "byte_fallback": false,
    "ignore_merges": false,
    "vocab": {{{}
    }},
    "merges": [{}
    ]
  }}
}}
)",
      added, use_regex, bos, vocab, rules);
  Result<Tokenizer> made = FromJson(std::move(json), "new tokenizer");
  MOE_CHECK(made.has_value(), "{}", made.error().Message());
  return *std::move(made);
}

}  // namespace moe
