#include "moe/files/tokenizer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "moe/files/atomic_file.h"
#include "moe/files/bpe_train.h"
#include "moe/files/utf8.h"
#include "testing/reference/bpe.h"
#include "testing/temp_dir.h"

namespace moe {
namespace {

using Json = nlohmann::json;
using Strings = std::vector<std::string>;

constexpr const char* kProse =
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife. "
    "However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is so "
    "well fixed in the minds of the surrounding families, that he is considered the rightful property of some one or other of "
    "their daughters.\n\n  \"My dear Mr. Bennet,\" said his lady to him one day, \"have you heard that Netherfield Park is let "
    "at last?\" Mr. Bennet replied that he hadn't. It's 1813, isn't it? \xe2\x82\xac 42 na\xc3\xafve \xf0\x9f\x98\x80\t\n";

Tokenizer Trained(int32_t vocab_size = 400) {
  return TrainBpe(Strings{kProse}, vocab_size).value();
}

Strings Pieces(std::string_view text) {
  const std::string pattern(kGpt2Pattern);
  Strings pieces;
  Pretokenizer::Create(std::span(&pattern, 1), "test")->Split(text, [&](std::string_view piece) {
    pieces.emplace_back(piece);
  });
  return pieces;
}

// Bytes that are often UTF-8 and often not.
std::string RandomText(std::mt19937& rng, size_t max_size) {
  const Strings parts = {"a",           "the",
                         " ",           "  ",
                         "\n",          "'s",
                         "'",           "9",
                         "\xc3\xa9",    "\xf0\x9f\x98\x80",
                         "\xff",        "\xc3",
                         "\xe2\x82",    std::string(1, '\0'),
                         "<eos>",       "!",
                         "\xe2\x80\x83"};
  std::string text;
  for (size_t size = rng() % (max_size + 1); text.size() < size;)
    text += rng() % 8 == 0 ? std::string(1, static_cast<char>(rng())) : parts[rng() % parts.size()];
  return text;
}

TEST(Pretokenizer, CutsAsGpt2Does) {
  EXPECT_EQ(Pieces("Hello world, it's 2024!!  Two   spaces\n\n end "),
            (Strings{"Hello", " world", ",", " it", "'s", " 2024", "!!", " ", " Two", "  ", " spaces", "\n\n", " end", " "}));
  EXPECT_EQ(Pieces("h\xc3\xa9llo\xe2\x82\xac \xe0\xa5\xa7x"), (Strings{"h\xc3\xa9llo", "\xe2\x82\xac", " \xe0\xa5\xa7", "x"}));
  EXPECT_EQ(Pieces(""), Strings{});
}

TEST(Pretokenizer, BytesThatAreNotUtf8StandAlone) {
  EXPECT_EQ(Pieces("ab\xff\xfe cd"), (Strings{"ab", "\xff\xfe", " cd"}));
  EXPECT_EQ(Pieces("ab\xc3"), (Strings{"ab", "\xc3"}));
}

TEST(Pretokenizer, RefusesABadPatternAndSurvivesAStrangeOne) {
  const Strings bad = {"(", "\\C", std::string(20'000, 'a')};
  for (const std::string& pattern : bad) EXPECT_FALSE(Pretokenizer::Create(std::span(&pattern, 1), "x")) << pattern;
  for (const std::string pattern : {"x*", "(?=a)", "(?<=a)", "a\\K", "(?=ab\\K)", "^", "(a|aa)+$", "(?:a+)+b"}) {
    const auto made = Pretokenizer::Create(std::span(&pattern, 1), "x");
    if (!made) continue;
    for (const std::string text : {"", "a", "aabab",
                                   "xxaxx\xff"
                                   "aab",
                                   "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}) {
      std::string joined;
      made->Split(text, [&](std::string_view piece) {
        EXPECT_FALSE(piece.empty());
        joined += piece;
      });
      EXPECT_EQ(joined, text) << pattern;
    }
  }
}

TEST(Tokenizer, BytesAreTheirIds) {
  const Tokenizer tokenizer = Tokenizer::Bytes();
  EXPECT_EQ(tokenizer.vocab_size(), 259);
  EXPECT_TRUE(tokenizer.is_bytes());
  EXPECT_EQ(tokenizer.bos_id(), 256);
  EXPECT_EQ(tokenizer.eos_id(), 257);
  EXPECT_EQ(tokenizer.pad_id(), 258);
  EXPECT_EQ(tokenizer.Encode("az\xff<eos>"), (std::vector<int32_t>{'a', 'z', 255, '<', 'e', 'o', 's', '>'}));
  EXPECT_EQ(tokenizer.Encode("a<eos><bos>", true), (std::vector<int32_t>{'a', 257, 256}));
  EXPECT_EQ(tokenizer.Decode(std::vector<int32_t>{256, 'h', 'i', 257}), "hi");
  EXPECT_EQ(tokenizer.TokenBytes(257), "");
  EXPECT_EQ(tokenizer.TokenName(257), "<eos>");
  EXPECT_EQ(tokenizer.TokenName('\n'), "\\n");
  EXPECT_EQ(tokenizer.TokenName(0xff), "\\xff");
  EXPECT_TRUE(tokenizer.IsSpecial(256) && !tokenizer.IsSpecial(255));
}

TEST(Tokenizer, SizeCountsTheSpecials) {
  const Tokenizer tokenizer = Trained(300);
  EXPECT_EQ(tokenizer.vocab_size(), 300);
  EXPECT_FALSE(tokenizer.is_bytes());
  EXPECT_EQ(tokenizer.bos_id(), 297);
  EXPECT_EQ(tokenizer.eos_id(), 298);
  EXPECT_EQ(tokenizer.pad_id(), 299);
  EXPECT_EQ(Trained(259).vocab_size(), 259);
  EXPECT_EQ(TrainBpe(Strings{kProse}, 258).error().what, "got 258, expected 259 (bytes and specials) to 1048576");
  EXPECT_FALSE(TrainBpe(Strings{kProse}, -1));
}

TEST(Tokenizer, TrainingStopsWhenNoPairOccursTwice) {
  EXPECT_EQ(TrainBpe(Strings{"abcdefg"}, 1000)->vocab_size(), 259);
  EXPECT_EQ(TrainBpe(Strings{"ab ab"}, 1000)->vocab_size(), 260);  // "ab"; " ab" occurs once
  EXPECT_EQ(TrainBpe(Strings{}, 1000)->vocab_size(), 259);
}

TEST(Tokenizer, TrainingIsDeterministicInAnyOrderOfTexts) {
  const std::string more = "Other words, other counts: the the the wife.";
  EXPECT_EQ(TrainBpe(Strings{kProse, more}, 400)->json(), TrainBpe(Strings{more, kProse}, 400)->json());
  EXPECT_NE(TrainBpe(Strings{kProse, more}, 400)->json(), Trained().json());
}

TEST(Tokenizer, LosslessOnAnyBytes) {
  const Tokenizer bytes = Tokenizer::Bytes(), trained = Trained();
  EXPECT_EQ(trained.Encode(""), std::vector<int32_t>{});
  EXPECT_LT(trained.Encode(kProse).size(), std::string(kProse).size() * 2 / 3);
  for (uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 rng(seed);
    const std::string text = RandomText(rng, 200);
    EXPECT_EQ(bytes.Decode(bytes.Encode(text)), text);
    const std::vector<int32_t> ids = trained.Encode(text);
    EXPECT_EQ(trained.Decode(ids), text);
    std::string joined;
    for (const int32_t id : ids) {
      EXPECT_FALSE(trained.IsSpecial(id));
      joined += trained.TokenBytes(id);
    }
    EXPECT_EQ(joined, text);
  }
}

TEST(Tokenizer, TrainsAndEncodesAsTheNaiveTwin) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 rng(seed);
    const int letters = 1 + static_cast<int>(rng() % 4);
    std::string text;
    for (size_t i = rng() % 400; i > 0; --i) text += rng() % 6 == 0 ? ' ' : static_cast<char>('a' + rng() % letters);
    std::map<std::string, int64_t> counts;
    for (const std::string& piece : Pieces(text)) ++counts[piece];
    const int num_merges = static_cast<int>(rng() % 60);
    const auto expected = reference::TrainBpe(counts, num_merges);

    std::vector<CountedPiece> pieces;
    for (const auto& [piece, count] : counts) pieces.push_back({piece, count});
    std::shuffle(pieces.begin(), pieces.end(), rng);
    std::vector<reference::Pair> got;
    for (const BpeMerge& merge : TrainMerges(pieces, num_merges)) {
      EXPECT_EQ(merge.result, static_cast<int32_t>(256 + got.size()));
      got.emplace_back(merge.left, merge.right);
    }
    ASSERT_EQ(got, expected);

    const Tokenizer tokenizer = TrainBpe(Strings{text}, 259 + num_merges).value();
    ASSERT_EQ(tokenizer.vocab_size(), static_cast<int32_t>(259 + expected.size()));
    std::string other;  // unseen text, with words beyond the size where the encoder changes its method
    for (size_t i = 0; i < 300; ++i) other += rng() % 70 == 0 ? ' ' : static_cast<char>('a' + rng() % letters);
    std::vector<int32_t> ids;
    for (const std::string& piece : Pieces(other))
      for (const int32_t id : reference::EncodePiece(piece, expected)) ids.push_back(id);
    EXPECT_EQ(tokenizer.Encode(other), ids);
  }
}

TEST(Tokenizer, LongRunsEncodeInTime) {  // quadratic work would take minutes
  const Tokenizer tokenizer = TrainBpe(Strings{std::string(4096, 'a') + " " + std::string(100, '\xff')}, 280).value();
  for (const char c : {'a', '\xff', ' ', 'z'}) {
    const std::string text(300'000, c);
    EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(text)), text);
  }
}

TEST(Tokenizer, SaveAndLoadGiveTheSameTokenizer) {
  const test::TempDir folder;
  for (const Tokenizer& tokenizer : {Tokenizer::Bytes(), Trained()}) {
    ASSERT_TRUE(tokenizer.Save(folder / "alone.json"));
    ASSERT_TRUE(tokenizer.Save(folder.path().string()));
    EXPECT_EQ(test::ReadFile(folder / "alone.json"), test::ReadFile(folder / "tokenizer.json"));
    EXPECT_EQ(Json::parse(test::ReadFile(folder / "tokenizer_config.json"))["bos_token"], "<bos>");
    for (const std::string& path : {folder / "alone.json", folder.path().string()}) {
      const auto loaded = Tokenizer::Load(path);
      ASSERT_TRUE(loaded) << loaded.error().Message();
      EXPECT_EQ(loaded->json(), tokenizer.json());
      EXPECT_EQ(loaded->vocab_size(), tokenizer.vocab_size());
      EXPECT_EQ(loaded->is_bytes(), tokenizer.is_bytes());
      EXPECT_EQ(loaded->bos_id(), tokenizer.bos_id());
      EXPECT_EQ(loaded->pad_id(), tokenizer.pad_id());
      for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) EXPECT_EQ(loaded->TokenBytes(id), tokenizer.TokenBytes(id));
      EXPECT_EQ(loaded->Encode(kProse), tokenizer.Encode(kProse));
    }
  }
}

TEST(Tokenizer, ReferenceIdsOfAHandMadeFile) {  // GPT-2's spelling, ids out of order, merges in both notations
  Json root = Json::parse(Trained(259).json());
  root["pre_tokenizer"]["use_regex"] = true;
  root["model"]["vocab"]["\xc4\xa0t"] = 300;  // " t"
  root["model"]["vocab"]["he"] = 301;
  root["model"]["vocab"]["\xc4\xa0the"] = 302;
  root["model"]["merges"] = Json::parse(R"(["Ġ t", ["h", "e"], "Ġt he"])");
  root["added_tokens"].push_back({{"id", 303}, {"content", "  "}, {"special", false}});
  const auto tokenizer = Tokenizer::FromJson(root.dump(), "test");
  ASSERT_TRUE(tokenizer) << tokenizer.error().Message();
  EXPECT_EQ(tokenizer->vocab_size(), 304);
  EXPECT_EQ(tokenizer->Encode("he the t"), (std::vector<int32_t>{301, 302, 300}));
  EXPECT_EQ(tokenizer->Encode("a   b"), (std::vector<int32_t>{'a', 303, ' ', 'b'}));  // added tokens first
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("a   b the")), "a   b the");
  EXPECT_EQ(tokenizer->TokenBytes(290), "");  // a hole
  root["model"]["ignore_merges"] = true;
  root["model"]["merges"] = Json::array({"h e"});
  EXPECT_EQ(Tokenizer::FromJson(root.dump(), "test")->Encode(" the them"), (std::vector<int32_t>{302, ' ', 't', 301, 'm'}));
}

TEST(Tokenizer, SplitSequencesLikeQwenAndOlmo) {
  Json root = Json::parse(Trained(400).json());
  root["pre_tokenizer"] = Json::parse(R"({"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}, "behavior": "Isolated", "invert": false},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})");
  const auto tokenizer = Tokenizer::FromJson(root.dump(), "test");
  ASSERT_TRUE(tokenizer) << tokenizer.error().Message();
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(kProse)), kProse);
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::mt19937 rng(seed);
    const std::string text = RandomText(rng, 100);
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text) << seed;
  }
}

TEST(Tokenizer, ConfigNamesTheSpecials) {
  const test::TempDir folder;
  Json root = Json::parse(Tokenizer::Bytes().json());
  root["added_tokens"][0]["content"] = "<one>";
  root["added_tokens"][1]["content"] = "<two>";
  root["added_tokens"][2]["content"] = "<|endoftext|>";
  test::WriteFile(folder / "tokenizer.json", root.dump());
  const auto guessed = Tokenizer::Load(folder.path().string());
  ASSERT_TRUE(guessed) << guessed.error().Message();
  EXPECT_EQ(guessed->eos_id(), 258);
  EXPECT_EQ(guessed->bos_id(), 258) << "eos stands in for a bos that is not there";
  EXPECT_EQ(guessed->pad_id(), -1);
  test::WriteFile(folder / "tokenizer_config.json",
                  R"({"bos_token": "<one>", "eos_token": {"content": "<two>"}, "pad_token": null})");
  const auto told = Tokenizer::Load(folder.path().string());
  ASSERT_TRUE(told) << told.error().Message();
  EXPECT_EQ(told->bos_id(), 256);
  EXPECT_EQ(told->eos_id(), 257);
  test::WriteFile(folder / "tokenizer_config.json", R"({"bos_token": "<three>"})");
  EXPECT_EQ(Tokenizer::Load(folder.path().string()).error().what,
            "bos_token is '<three>', expected an added token of tokenizer.json");
}

struct Fault {
  const char* patch;    // JSON merge patch (RFC 7386) on a good file
  const char* message;  // is part of it
};

TEST(Tokenizer, EachFaultOfAFileHasItsLine) {
  const Fault kFaults[] = {
      {R"({"normalizer": {"type": "NFKC"}})", "has a normalizer (NFKC), expected none or NFC"},
      {R"({"normalizer": "NFC"})", "has a normalizer (), expected none or NFC"},
      {R"({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}})",
       "has a normalizer (Lowercase), expected none or NFC"},
      {R"({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]}})",
       "has a Sequence of normalizers in another"},
      {R"({"normalizer": {"type": "Sequence"}})", "has a normalizer (Sequence), expected none or NFC"},
      {R"({"model": {"type": "Unigram"}})", "has a model of type 'Unigram', expected BPE"},
      {R"({"model": {"type": "WordPiece"}})", "has a model of type 'WordPiece'"},
      {R"({"model": null})", "has a model of type ''"},
      {R"({"model": {"byte_fallback": true}})", "is a SentencePiece BPE"},
      {R"({"model": {"end_of_word_suffix": "</w>"}})", "has a end_of_word_suffix"},
      {R"({"model": {"dropout": 0.1}})", "has dropout 0.1"},
      {R"({"model": {"vocab": 3}})", "has a vocab of type number"},
      {R"({"model": {"vocab": {"a": null}}})", "has no token for byte 0x61"},
      {R"({"model": {"vocab": {"a": -1}}})", "token 'a': got id -1"},
      {R"({"model": {"vocab": {"a": 1.5}}})", "token 'a': got id 1.5"},
      {R"({"model": {"vocab": {"a": 4000000000}}})", "token 'a': got id 4000000000, expected 0 to 1048575"},
      {R"({"model": {"vocab": {"a": 98}}})", "has id 98, as another one has"},
      {R"({"model": {"vocab": {"▁a": 9999}}})", "is not spelled in GPT-2's byte alphabet"},
      {R"({"model": {"vocab": {"": 9999}}})", "token '': is not spelled"},
      {R"({"model": {"merges": 3}})", "has merges of type number"},
      {R"({"model": {"merges": ["ab"]}})", "merge 0 (\"ab\"): expected \"a b\""},
      {R"({"model": {"merges": [["a"]]}})", "merge 0 ([\"a\"]): expected \"a b\""},
      {R"({"model": {"merges": [7]}})", "merge 0 (7): expected"},
      {R"({"model": {"merges": ["q Z"]}})", "both parts and the whole must be tokens"},
      {R"({"model": {"vocab": {"qZ": 9999}, "merges": ["q Z", "q Z"]}})", "merge 1 (\"q Z\"): is there twice"},
      {R"({"pre_tokenizer": null})", "has pre_tokenizer ''"},
      {R"({"pre_tokenizer": {"type": "Whitespace"}})", "has pre_tokenizer 'Whitespace', expected ByteLevel or Split"},
      {R"({"pre_tokenizer": {"add_prefix_space": true}})", "has add_prefix_space"},
      {R"({"pre_tokenizer": {"type": "Sequence"}})", "Sequence without a list"},
      {R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}})", "has no ByteLevel"},
      {R"({"pre_tokenizer": {"type": "Split", "behavior": "Isolated", "pattern": {"Regex": "("}}})", "has no ByteLevel"},
      {R"({"pre_tokenizer": {"type": "Split", "behavior": "Isolated", "pattern": {"String": "("}}})", "Split without a Regex"},
      {R"({"pre_tokenizer": {"type": "Split", "behavior": "MergedWithNext", "pattern": {"Regex": "a"}}})",
       "behavior 'MergedWithNext'"},
      {R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "behavior": "Isolated", "pattern": {"Regex": "("}}, {"type": "ByteLevel"}]}})",
       "which does not compile"},
      {R"({"added_tokens": 3})", "has added_tokens of type number"},
      {R"({"added_tokens": [3]})", "has an added token of type number"},
      {R"({"added_tokens": [{"id": 9999, "content": ""}]})", "has an added token without content"},
      {R"({"added_tokens": [{"id": 9999, "content": "<x>", "lstrip": true}]})", "added token '<x>': has lstrip"},
      {R"({"added_tokens": [{"id": 9999, "content": "<x>"}, {"id": 9998, "content": "<x>"}]})",
       "added token '<x>': is there twice"},
      {R"({"added_tokens": [{"id": 9999, "content": "a"}]})", "added token 'a': has id 9999, expected 97 as in the vocab"},
      {R"({"added_tokens": [{"id": 9999, "content": "<x>"}, {"id": 9999, "content": "<y>"}]})",
       "has id 9999, as another one has"},
      {R"({"added_tokens": [{"content": "<x>\n"}]})", "token '<x>\\x0a': got id null"},
      {R"({"added_tokens": [{"id": 97, "content": "a", "special": true}]})", "has no token for byte 0x61"},
  };
  const Json good = Json::parse(Trained(400).json());
  for (const Fault& fault : kFaults) {
    Json bad = good;
    bad.merge_patch(Json::parse(fault.patch));
    const auto loaded = Tokenizer::FromJson(bad.dump(), "file");
    ASSERT_FALSE(loaded) << fault.patch;
    EXPECT_NE(loaded.error().Message().find(fault.message), std::string::npos) << loaded.error().Message();
    EXPECT_EQ(loaded.error().Message().find('\n'), std::string::npos);
  }
  EXPECT_FALSE(Tokenizer::FromJson("", "file"));
  EXPECT_FALSE(Tokenizer::FromJson("[]", "file"));
  EXPECT_FALSE(Tokenizer::FromJson(good.dump().substr(0, 1000), "file"));
  EXPECT_EQ(Tokenizer::Load("/no/such").error().Message(), "[/no/such] cannot open: No such file or directory");
}

TEST(Tokenizer, StreamsTextFromTokensThatCutCharacters) {
  const Tokenizer tokenizer = Tokenizer::Bytes();
  Utf8Stream stream;
  std::string text;
  for (const int32_t id : tokenizer.Encode(kProse)) {
    const std::string given = stream.Push(tokenizer.TokenBytes(id));
    EXPECT_EQ(ValidUtf8Prefix(given), given.size());
    text += given;
  }
  EXPECT_EQ(text + stream.Flush(), kProse);
}

}  // namespace
}  // namespace moe
