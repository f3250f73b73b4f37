// Tokenizers that bring text into its composed form (NFC) first.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "moe/files/bpe_train.h"
#include "moe/files/tokenizer.h"
#include "testing/temp_dir.h"

namespace moe {
namespace {

using Json = nlohmann::json;
using Strings = std::vector<std::string>;

// As OLMoE's and Qwen's files have it.
TEST(Tokenizer, NfcMakesFormsThatLookAlikeEncodeAlike) {
  Json root =
      Json::parse(TrainBpe(Strings{"caf\u00e9 caf\u00e9 na\u00efve na\u00efve \uac01\uac01 \uac01\uac01"}, 290)->json());
  const auto plain = Tokenizer::FromJson(root.dump(), "test");
  root["normalizer"] = {{"type", "NFC"}};
  const auto nfc = Tokenizer::FromJson(root.dump(), "test");
  ASSERT_TRUE(nfc) << nfc.error().Message();
  EXPECT_TRUE(nfc->normalizes() && !plain->normalizes());
  const std::string composed = "caf\u00e9, na\u00efve \uac01", decomposed = "cafe\u0301, nai\u0308ve \u1100\u1161\u11a8";
  EXPECT_NE(plain->Encode(composed), plain->Encode(decomposed));
  EXPECT_EQ(nfc->Encode(composed), plain->Encode(composed));
  EXPECT_EQ(nfc->Encode(decomposed), plain->Encode(composed));
  EXPECT_EQ(nfc->Decode(nfc->Encode(decomposed)), composed);
  for (const std::string text : {"e\xff\u0301", "\xff\xfe", "caf\xc3", "ab\xe2\x82 c"}) {  // what is not UTF-8 stays as it is
    EXPECT_EQ(nfc->Encode(text), plain->Encode(text)) << text;
  }
  for (const char* same :
       {R"({"type": "Sequence", "normalizers": []})", R"({"type": "Sequence", "normalizers": [{"type": "NFC"}]})"}) {
    root["normalizer"] = Json::parse(same);
    const auto sequence = Tokenizer::FromJson(root.dump(), "test");
    ASSERT_TRUE(sequence) << sequence.error().Message();
    EXPECT_EQ(sequence->normalizes(), !root["normalizer"]["normalizers"].empty());
  }
  const test::TempDir folder;
  ASSERT_TRUE(nfc->Save(folder.path().string()));
  EXPECT_TRUE(Tokenizer::Load(folder.path().string())->normalizes());
}

// Those with "normalized": true are looked for in the text's NFC, as NFC; the others before, in the text as it is.
TEST(Tokenizer, AddedTokensAreMatchedBeforeOrAfterNfc) {
  Json root = Json::parse(Tokenizer::Bytes().json());
  root["normalizer"] = {{"type", "NFC"}};
  const auto add = [&](int id, const char* content, const Json& normalized) {
    Json token = {{"id", id}, {"content", content}, {"special", false}};
    if (!normalized.is_null()) token["normalized"] = normalized;
    root["added_tokens"].push_back(token);
  };
  add(300, "<e\u0301>", true), add(301, "<o\u0301>", false), add(302, "<u\u0301>", nullptr);  // absent: as special is not
  const auto tokenizer = Tokenizer::FromJson(root.dump(), "test");
  ASSERT_TRUE(tokenizer) << tokenizer.error().Message();
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(tokenizer->Encode("<\u00e9><e\u0301>"), (Ids{300, 300}));
  EXPECT_EQ(tokenizer->Encode("<o\u0301>"), Ids{301});
  EXPECT_EQ(tokenizer->Encode("<\u00f3>"), (Ids{'<', 0xc3, 0xb3, '>'}));
  EXPECT_EQ(tokenizer->Encode("<\u00fa>e\u0301<o\u0301>"), (Ids{302, 0xc3, 0xa9, 301}));
  EXPECT_EQ(tokenizer->Decode(Ids{300, 301}), "<\u00e9><o\u0301>");
}

}  // namespace
}  // namespace moe
