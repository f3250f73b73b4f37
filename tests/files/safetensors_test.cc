#include "moe/files/safetensors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>

#include "moe/base/bf16.h"
#include "moe/files/f16.h"
#include "testing/temp_dir.h"

namespace moe {
namespace {

std::span<const std::byte> Bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// A file with exactly this header and data, valid or not.
std::string WriteRaw(const test::TempDir& folder, const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  std::string file(reinterpret_cast<const char*>(&size), sizeof(size));
  test::WriteFile(folder / "x.safetensors", file + header + data);
  return folder / "x.safetensors";
}

std::string ErrorOf(const std::string& path) {
  const auto opened = Safetensors::Open(path);
  EXPECT_FALSE(opened);
  if (opened) return "";
  EXPECT_EQ(opened.error().Message().find('\n'), std::string::npos) << "one line";
  EXPECT_NE(opened.error().where.find(path), std::string::npos) << "names the file";
  return opened.error().what;
}

// Two float tensors and one of bytes, with checksums.
std::string WriteSample(const test::TempDir& folder, const std::string& name = "model.safetensors") {
  const std::string path = folder / name;
  auto writer = SafetensorsWriter::Create(
      path, {{"w", DType::kF32, {2, 3}}, {"b", DType::kBf16, {5}}, {"none", DType::kF32, {0, 7}}, {"u", DType::kU8, {3}}},
      {.metadata = {{"step", "12"}, {"note", "line\n\"quoted\""}}, .checksums = true});
  EXPECT_TRUE(writer);
  const std::vector<float> w = {1, -2, 3.5f, 0, 1e-30f, 6}, b = {1, 2, 3, 4, -5};
  EXPECT_TRUE(writer->AppendFloats("w", std::span(w).first(4)));
  EXPECT_TRUE(writer->AppendFloats("w", std::span(w).subspan(4)));
  EXPECT_TRUE(writer->AppendFloats("b", b));
  EXPECT_TRUE(writer->Append("u", Bytes("abc")));
  EXPECT_TRUE(writer->Commit());
  return path;
}

TEST(Safetensors, RoundTrip) {
  const test::TempDir folder;
  const std::string path = WriteSample(folder);
  const auto file = Safetensors::Open(path);
  ASSERT_TRUE(file) << file.error().Message();
  ASSERT_EQ(file->tensors().size(), 4u);
  std::vector<std::string> names;
  for (const auto& tensor : file->tensors()) names.push_back(tensor.name);
  EXPECT_EQ(names, (std::vector<std::string>{"w", "b", "none", "u"}));
  EXPECT_EQ(file->metadata().at("step"), "12");
  EXPECT_EQ(file->metadata().at("note"), "line\n\"quoted\"");
  EXPECT_EQ(file->Find("absent"), nullptr);
  EXPECT_TRUE(file->has_checksums());
  EXPECT_TRUE(file->VerifyChecksums());

  std::vector<float> w(6), b(5);
  ASSERT_TRUE(ReadFloats(*file->Find("w"), std::vector<int64_t>{2, 3}, w));
  EXPECT_EQ(w, (std::vector<float>{1, -2, 3.5f, 0, 1e-30f, 6}));
  ASSERT_TRUE(ReadFloats(*file->Find("b"), std::vector<int64_t>{5}, b));
  EXPECT_EQ(b, (std::vector<float>{1, 2, 3, 4, -5}));
  EXPECT_EQ(file->Find("none")->data.size(), 0u);
  ASSERT_TRUE(ReadFloats(*file->Find("none"), std::vector<int64_t>{0, 7}, {}));
  EXPECT_EQ(std::memcmp(file->Find("u")->data.data(), "abc", 3), 0);

  EXPECT_EQ(ReadFloats(*file->Find("w"), std::vector<int64_t>{3, 2}, w).error().what,
            "tensor 'w' has shape [2,3], expected [3,2]");
  std::vector<float> u(3);
  EXPECT_EQ(ReadFloats(*file->Find("u"), std::vector<int64_t>{3}, u).error().what,
            "tensor 'u' has dtype u8, expected f32, bf16 or f16");
}

TEST(Safetensors, DataStartsAligned) {
  const test::TempDir folder;
  const auto file = Safetensors::Open(WriteSample(folder));
  ASSERT_TRUE(file);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file->tensors()[0].data.data()) % 64, 0u);
}

TEST(Safetensors, WritingIsDeterministic) {
  const test::TempDir folder;
  EXPECT_EQ(ReadFile(WriteSample(folder, "a")).value(), ReadFile(WriteSample(folder, "b")).value());
}

TEST(Safetensors, NothingAppearsBeforeCommit) {
  const test::TempDir folder;
  {
    auto writer = SafetensorsWriter::Create(folder / "x", {{"w", DType::kU8, {3}}});
    ASSERT_TRUE(writer && writer->Append("w", Bytes("abc")));
    EXPECT_FALSE(std::filesystem::exists(folder / "x"));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path().string()));
}

TEST(Safetensors, NoTensorsAndScalars) {
  const test::TempDir folder;
  ASSERT_TRUE(SafetensorsWriter::Create(folder / "empty", {})->Commit());
  EXPECT_EQ(Safetensors::Open(folder / "empty")->tensors().size(), 0u);
  auto writer = SafetensorsWriter::Create(folder / "scalar", {{"s", DType::kI64, {}}});
  const int64_t value = -7;
  ASSERT_TRUE(writer->Append("s", std::as_bytes(std::span(&value, 1))));
  ASSERT_TRUE(writer->Commit());
  const auto file = Safetensors::Open(folder / "scalar");
  ASSERT_TRUE(file);
  EXPECT_EQ(file->Find("s")->size(), 1);
  EXPECT_EQ(std::memcmp(file->Find("s")->data.data(), &value, 8), 0);
  EXPECT_EQ(file->VerifyChecksums().error().what, "got no checksums, expected them in its metadata ('xxh3:__header__')");
}

TEST(Safetensors, AnyFlippedBitIsFound) {
  const test::TempDir folder;
  const std::string path = WriteSample(folder), good = ReadFile(path).value();
  for (size_t bit = 0; bit < 8 * good.size(); bit += 7) {  // each byte, and each of the eight bits
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    std::filesystem::remove(path);  // a new file costs no disk flush, an overwritten one may
    test::WriteFile(path, bad);
    const auto file = Safetensors::Open(path);
    EXPECT_FALSE(file && file->VerifyChecksums()) << "bit " << bit;
  }
}

TEST(Safetensors, DamagedTensorIsNamed) {
  const test::TempDir folder;
  const std::string path = WriteSample(folder);
  std::string bad = ReadFile(path).value();
  bad[bad.size() - 5] ^= 1;  // in "b", before the three bytes of "u"
  ASSERT_TRUE(WriteFileAtomically(path, bad));
  const auto file = Safetensors::Open(path);
  ASSERT_TRUE(file);
  EXPECT_EQ(file->VerifyChecksums().error().what.substr(0, 36), "tensor 'b': is damaged: got checksum");
}

TEST(Safetensors, EveryTruncationIsAnError) {
  const test::TempDir folder;
  const std::string path = WriteSample(folder), good = ReadFile(path).value();
  for (size_t size = 0; size < good.size(); size += 1 + size / 40) {
    std::filesystem::remove(path);
    test::WriteFile(path, good.substr(0, size));
    EXPECT_NE(ErrorOf(path), "") << size;
  }
  test::WriteFile(path, good + "x");
  EXPECT_EQ(ErrorOf(path), "got 38 bytes of data, expected 37 as its header says");
}

struct Corruption {
  const char* header;
  size_t data_bytes;
  const char* message;  // is part of it
};

TEST(Safetensors, EachCorruptionHasItsMessage) {
  const Corruption kCorruptions[] = {
      {"", 0, "does not start with '{'"},
      {"[]", 0, "does not start with '{'"},
      {"{", 0, "is not JSON: broken at byte"},
      {"{\"a\":{}}", 0, "tensor 'a': expected an object of dtype, shape and data_offsets"},
      {"{\"a\":3}", 0, "tensor 'a': expected an object"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8,
       "key 'a' appears twice"},
      {R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4, "tensor 'a': got dtype \"F33\", expected F32, BF16"},
      {R"({"a":{"dtype":4,"shape":[1],"data_offsets":[0,4]}})", 4, "tensor 'a': got dtype 4"},
      {R"({"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})", 4, "tensor 'a': shape is number"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "tensor 'a': got extent -1 in shape"},
      {R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "tensor 'a': got extent 1.0 in shape"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})", 4,
       "tensor 'a': got extent 18446744073709551615"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})", 4,
       "tensor 'a': shape [4294967296,4294967296] overflows"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, "tensor 'a': data_offsets are not two"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}})", 4, "tensor 'a': data_offsets are not two"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4,
       "tensor 'a': got data_offsets [4,0], expected them inside"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4,
       "tensor 'a': got data_offsets [0,8], expected them inside the 4 bytes"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "tensor 'a': got 4 bytes, expected 8"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})", 6,
       "tensor 'b': starts at byte 2, expected 4: the tensors overlap"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[1],"data_offsets":[5,6]}})", 6,
       "tensor 'b': starts at byte 5, expected 4: the tensors leave a hole"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 6, "got 6 bytes of data, expected 4"},
      {R"({"__metadata__":{"a":1}})", 0, "__metadata__ 'a' is number, expected a string"},
      {R"({"__metadata__":[]})", 0, "__metadata__ is array"},
      {R"({"a\n\u0007":3})", 0, "tensor 'a\\x0a\\x07': expected an object"},
      {"{\"\xff\":3}", 0, "is not JSON: broken at byte"},
  };
  const test::TempDir folder;
  for (const Corruption& c : kCorruptions) {
    const auto opened = Safetensors::Open(WriteRaw(folder, c.header, std::string(c.data_bytes, 'x')));
    ASSERT_FALSE(opened) << c.header;
    EXPECT_NE(opened.error().Message().find(c.message), std::string::npos) << opened.error().Message();
    EXPECT_EQ(opened.error().Message().find('\n'), std::string::npos);
  }
  std::string deep = "{\"a\":";
  for (int i = 0; i < 100'000; ++i) deep += '[';
  EXPECT_NE(ErrorOf(WriteRaw(folder, deep, "")).find("more than 64 levels"), std::string::npos);
}

TEST(Safetensors, HeaderLengthIsBounded) {
  const test::TempDir folder;
  for (const uint64_t length : {uint64_t{3}, uint64_t{100'000'001}, std::numeric_limits<uint64_t>::max()}) {
    std::string file(reinterpret_cast<const char*>(&length), sizeof(length));
    ASSERT_TRUE(WriteFileAtomically(folder / "x", file + "{}"));
    EXPECT_NE(ErrorOf(folder / "x").find("got a header length of"), std::string::npos) << length;
  }
}

TEST(Safetensors, AcceptsPaddingAndAnyOrderOfTheHeader) {
  const test::TempDir folder;
  const std::string header =
      R"({"b":{"data_offsets":[0,2],"dtype":"U8","shape":[2]},"a":{"shape":[],"dtype":"U8","data_offsets":[2,3]}}      )";
  const auto file = Safetensors::Open(WriteRaw(folder, header, "xyz"));
  ASSERT_TRUE(file) << file.error().Message();
  EXPECT_EQ(file->tensors()[0].name, "b");
  EXPECT_EQ(static_cast<char>(file->Find("a")->data[0]), 'z');
}

TEST(ModelFiles, OneFileOrFolder) {
  const test::TempDir folder;
  EXPECT_EQ(ModelFiles::Open(folder.path().string()).error().what,
            "holds no model: expected model.safetensors or model.safetensors.index.json");
  const std::string path = WriteSample(folder);
  for (const std::string& name : {path, folder.path().string()}) {
    const auto model = ModelFiles::Open(name);
    ASSERT_TRUE(model) << model.error().Message();
    EXPECT_EQ(model->names(), (std::vector<std::string>{"w", "b", "none", "u"}));
    EXPECT_NE(model->Find("b"), nullptr);
    EXPECT_TRUE(model->VerifyChecksums());
  }
}

class Shards : public testing::Test {
 protected:
  void SetUp() override {
    Write("one.safetensors", {"a", "b"});
    Write("two.safetensors", {"c"});
  }
  void Write(const std::string& file, const std::vector<std::string>& names) {
    std::vector<TensorInfo> tensors;
    for (const auto& name : names) tensors.push_back({name, DType::kU8, {1}});
    auto writer = SafetensorsWriter::Create(folder_ / file, tensors);
    for (const auto& name : names) ASSERT_TRUE(writer->Append(name, Bytes(name)));
    ASSERT_TRUE(writer->Commit());
  }
  std::string Open(const std::string& index) {
    EXPECT_TRUE(WriteFileAtomically(folder_ / "model.safetensors.index.json", index));
    const auto model = ModelFiles::Open(folder_.path().string());
    if (!model) return model.error().what;
    EXPECT_EQ(model->names(), (std::vector<std::string>{"a", "b", "c"}));
    EXPECT_EQ(static_cast<char>(model->Find("c")->data[0]), 'c');
    return "";
  }
  test::TempDir folder_;
};

TEST_F(Shards, AreOneTable) {
  EXPECT_EQ(
      Open(R"({"metadata":{"total_size":3},"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}})"),
      "");
}

TEST_F(Shards, EveryDisagreementIsAnError) {
  EXPECT_EQ(Open(R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"three.safetensors"}})"),
            "names the shard 'three.safetensors', which is missing");
  EXPECT_EQ(Open(R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors","d":"two.safetensors"}})"),
            "tensor 'd': is not in the shard 'two.safetensors'");
  EXPECT_EQ(Open(R"({"weight_map":{"a":"one.safetensors","c":"two.safetensors"}})"),
            "tensor 'b': is in the shard 'one.safetensors', but not in the index");
  EXPECT_EQ(Open(R"({"weight_map":{"a":"../one.safetensors"}})"),
            "tensor 'a': got \"../one.safetensors\", expected the name of a file in this folder");
  EXPECT_EQ(Open(R"({"weight_map":{"a":7}})"), "tensor 'a': got 7, expected the name of a file in this folder");
  EXPECT_EQ(Open(R"({"weights":{}})"), "got no weight_map, expected an object of tensor: file");
  EXPECT_EQ(Open(R"([1])"), "got no weight_map, expected an object of tensor: file");
  Write("two.safetensors", {"c", "b"});
  EXPECT_EQ(Open(R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}})"),
            "tensor 'b': is in two shards, 'one.safetensors' and 'two.safetensors'");
}

TEST(F16, EveryValueSurvivesFloat) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const F16 half{static_cast<uint16_t>(bits)};
    const float value = ToFloat(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(ToFloat(ToF16(value))));
      continue;
    }
    EXPECT_EQ(ToF16(value).bits, half.bits) << bits;
    const int exponent = (bits >> 10) & 31;
    if (exponent != 31) {
      const double expected =
          std::ldexp((bits & 1023) + (exponent ? 1024 : 0), (exponent ? exponent : 1) - 25) * (bits & 32768 ? -1 : 1);
      EXPECT_EQ(static_cast<double>(value), expected) << bits;
    }
  }
}

TEST(F16, RoundsToNearestTiesToEven) {
  for (uint32_t bits = 0; bits < 0x7bffu; ++bits) {  // positive and finite; the next one up exists
    const float low = ToFloat(F16{static_cast<uint16_t>(bits)}), high = ToFloat(F16{static_cast<uint16_t>(bits + 1)});
    const float middle = (low + high) / 2;  // exact: one more bit
    EXPECT_EQ(ToF16(middle).bits, bits % 2 == 0 ? bits : bits + 1);
    EXPECT_EQ(ToF16(std::nextafter(middle, 0.0f)).bits, bits);
    EXPECT_EQ(ToF16(std::nextafter(middle, 1e9f)).bits, bits + 1);
  }
  EXPECT_EQ(ToF16(65519.996f).bits, 0x7bff);
  EXPECT_EQ(ToF16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(ToF16(-std::numeric_limits<float>::infinity()).bits, 0xfc00);
}

TEST(Safetensors, HalfPrecisionTensors) {
  const test::TempDir folder;
  std::mt19937 rng(1);
  std::vector<float> values(5001);
  for (float& value : values) value = static_cast<float>(static_cast<int32_t>(rng())) * 0x1p-20f;
  auto writer = SafetensorsWriter::Create(folder / "x",
                                          {{"odd", DType::kU8, {1}}, {"h", DType::kF16, {5001}}, {"b", DType::kBf16, {5001}}});
  ASSERT_TRUE(writer->Append("odd", Bytes("!")));  // so that the others are not aligned
  ASSERT_TRUE(writer->AppendFloats("h", values));
  ASSERT_TRUE(writer->AppendFloats("b", values));
  ASSERT_TRUE(writer->Commit());
  const auto file = Safetensors::Open(folder / "x");
  ASSERT_TRUE(file);
  std::vector<float> h(5001), b(5001);
  ASSERT_TRUE(ReadFloats(*file->Find("h"), std::vector<int64_t>{5001}, h));
  ASSERT_TRUE(ReadFloats(*file->Find("b"), std::vector<int64_t>{5001}, b));
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(h[i], ToFloat(ToF16(values[i])));
    EXPECT_EQ(b[i], ToFloat(ToBf16(values[i])));
  }
}

}  // namespace
}  // namespace moe
