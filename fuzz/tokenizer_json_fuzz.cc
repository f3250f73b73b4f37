// Any bytes as a tokenizer.json, or (after a 'P') as a JSON merge patch on a good one: an error, or a tokenizer that loses no
// byte, or none but by NFC.

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "moe/base/check.h"
#include "moe/files/bpe_train.h"
#include "moe/files/nfc.h"
#include "moe/files/tokenizer.h"

using Json = nlohmann::json;

static std::string Nfc(const std::string& text) {
  std::string storage;
  return std::string(moe::ToNfc(text, storage));
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<std::string> kTexts = {"aab aab abc abc he the the then, then 12 12",
                                                  "\xc3\xa9\xc3\xa9 e\u0301 \xff\xff"};
  static const Json good = Json::parse(moe::TrainBpe(kTexts, 280)->json());
  std::string json(reinterpret_cast<const char*>(data), size);
  if (!json.empty() && json[0] == 'P') {
    const Json patch = Json::parse(json.begin() + 1, json.end(), nullptr, false);
    if (patch.is_discarded()) return 0;
    Json patched = good;
    patched.merge_patch(patch);
    json = patched.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  const auto tokenizer = moe::Tokenizer::FromJson(json, "fuzz");
  if (!tokenizer) {
    MOE_CHECK(tokenizer.error().Message().find('\n') == std::string::npos, "{}", tokenizer.error().Message());
    return 0;
  }
  for (const std::string& text : {kTexts[0], kTexts[1], json.substr(0, 200)}) {
    std::string decoded = tokenizer->Decode(tokenizer->Encode(text)), expected = text;
    if (tokenizer->normalizes()) decoded = Nfc(decoded), expected = Nfc(text);
    MOE_CHECK(decoded == expected, "got '{}', expected '{}'", decoded, expected);
    (void)tokenizer->Encode(text, true);
  }
  for (int32_t id = 0; id < std::min(tokenizer->vocab_size(), 1000); ++id) (void)tokenizer->TokenName(id);
  return 0;
}
