#include "moe/model/load.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "moe/files/safetensors.h"
#include "moe/model/hf_config.h"
#include "moe/model/save.h"
#include "testing/hf_cases.h"
#include "testing/matchers.h"
#include "testing/temp_dir.h"
#include "testing/test_context.h"

namespace moe::test {
namespace {

namespace fs = std::filesystem;

std::string Subfolder(const TempDir& dir, const char* name) {
  fs::create_directories(dir.path() / name);
  return dir / name;
}

std::vector<float> Logits(const Model& model, TestContext& t) {
  const TinyBatch batch = RandomBatch(model.config(), {7, 2}, 1);
  t.arena.Reset();
  const auto logits = model.Forward(batch.step(), nullptr, t.ctx);
  return logits ? std::vector<float>(logits->data, logits->data + logits->size()) : std::vector<float>();
}

// The tensors of a file, for tests that change one and write them again.
struct Loose {
  TensorInfo info;
  std::vector<std::byte> bytes;
};
std::vector<Loose> ReadAll(const std::string& folder) {
  std::vector<Loose> out;
  const ModelFiles files = ModelFiles::Open(folder).value();
  for (const std::string& name : files.names()) {
    const StoredTensor& tensor = *files.Find(name);
    out.push_back({tensor, {tensor.data.begin(), tensor.data.end()}});
  }
  return out;
}
void WriteAll(const std::string& path, const std::vector<Loose>& tensors) {
  std::vector<TensorInfo> infos;
  for (const Loose& tensor : tensors) infos.push_back(tensor.info);
  auto writer = SafetensorsWriter::Create(path, infos).value();
  for (const Loose& tensor : tensors) ASSERT_TRUE(writer.Append(tensor.info.name, tensor.bytes));
  ASSERT_TRUE(writer.Commit());
}

// Parameters that files of any dtype hold in float32: of gate networks that no public family has.
std::set<std::string> Exact(const ModelConfig& config) {
  std::set<std::string> names;
  for (size_t l = 0; l < config.layers.size(); ++l) {
    if (config.layers[l].moe.router.gate == GateNetwork::kLinear) continue;
    for (const char* name : {"router", "router_hidden", "router_scale"}) names.insert(fmt::format("layers.{}.moe.{}", l, name));
  }
  return names;
}

TEST(LoadModel, RoundTripsAreExactForEveryFamily) {
  for (const HfCase& c : HfCases()) {
    SCOPED_TRACE(c.name);
    const TempDir dir;
    TestContext t(2);
    Model model(c.config, DType::kBf16, /*training=*/true);
    FillParameters(model, 13, t.ctx);
    const std::string first = Subfolder(dir, "f32"), second = Subfolder(dir, "f32 again"), half = Subfolder(dir, "bf16"),
                      half_again = Subfolder(dir, "bf16 again");
    ASSERT_TRUE(SaveModel(model, first, DType::kF32));
    EXPECT_EQ(nlohmann::json::parse(ReadFile(first + "/config.json"))["model_type"], c.model_type);

    const auto loaded = LoadModel(first, {.format = DType::kBf16, .training = true}, t.ctx);
    ASSERT_TRUE(loaded) << loaded.error().Message();
    for (const Parameter& p : model.parameters().all()) {
      SCOPED_TRACE(p.name);
      ExpectSameBits((*loaded)->parameters().Find(p.name)->value.span(), p.value.span());
    }
    ASSERT_TRUE(SaveModel(**loaded, second, DType::kF32));
    EXPECT_TRUE(ReadFile(first + "/model.safetensors") == ReadFile(second + "/model.safetensors"));
    EXPECT_EQ(ReadFile(first + "/config.json"), ReadFile(second + "/config.json"));

    const std::vector<float> want = Logits(model, t);
    ExpectSameBits(Logits(**loaded, t), want);
    const auto inferring = LoadModel(first, {.format = DType::kBf16}, t.ctx);
    ASSERT_TRUE(inferring) << inferring.error().Message();
    ExpectSameBits(Logits(**inferring, t), want);
    EXPECT_TRUE((*inferring)->parameters().Find("layers.0.attention.qkv")->value.empty());

    ASSERT_TRUE(SaveModel(model, half, DType::kBf16));
    const auto rounded = LoadModel(half, {.format = DType::kF32, .training = true}, t.ctx);
    ASSERT_TRUE(rounded) << rounded.error().Message();
    for (const Parameter& p : model.parameters().all()) {
      const Parameter& q = *(*rounded)->parameters().Find(p.name);
      const bool exact = Exact(c.config).contains(p.name);
      for (int64_t i = 0; i < p.value.size(); ++i) {
        const float value = p.value.data()[i];
        ASSERT_EQ(q.value.data()[i], exact ? value : ToFloat(ToBf16(value))) << p.name;
      }
    }
    ASSERT_TRUE(SaveModel(**rounded, half_again, DType::kBf16));
    EXPECT_TRUE(ReadFile(half + "/model.safetensors") == ReadFile(half_again + "/model.safetensors"));
  }
}

TEST(LoadModel, TensorsHaveTheNamesAndRowsOtherSoftwareExpects) {
  TestContext t(1);
  const auto save = [&](const ModelConfig& config, const TempDir& dir) {
    Model model(config, DType::kF32, true);
    FillParameters(model, 13, t.ctx);
    EXPECT_TRUE(SaveModel(model, dir.path().string(), DType::kF32));
    std::vector<double> rows;
    const Parameter& experts = *model.parameters().Find("layers.1.moe.experts.gate_up");
    // Expert 3: 16 gates, then 16 ups.
    for (int64_t i = 0; i < 32 * 24; ++i) rows.push_back(experts.value.data()[3 * 32 * 24 + i]);
    return rows;
  };
  const auto values = [](const Safetensors& file, const std::string& name) {
    const StoredTensor* tensor = file.Find(name);
    std::vector<float> out(tensor == nullptr ? 0 : static_cast<size_t>(tensor->size()));
    EXPECT_TRUE(tensor != nullptr && ReadFloats(*tensor, tensor->shape, out));
    return Doubles(out);
  };
  ModelConfig olmoe = TinyMoe(), qwen = TinyMoe();
  olmoe.qk_norm = QkNorm::kWhole, qwen.qk_norm = QkNorm::kPerHead;
  const std::pair<ModelConfig, std::pair<std::string, std::string>> families[] = {
      {TinyMoe(),
       {"model.layers.1.block_sparse_moe.experts.3.w1.weight", "model.layers.1.block_sparse_moe.experts.3.w3.weight"}},
      {olmoe, {"model.layers.1.mlp.experts.3.gate_proj.weight", "model.layers.1.mlp.experts.3.up_proj.weight"}},
      {qwen, {"model.layers.1.mlp.experts.3.gate_proj.weight", "model.layers.1.mlp.experts.3.up_proj.weight"}},
  };
  for (const auto& [config, names] : families) {
    const TempDir dir;
    const std::vector<double> rows = save(config, dir);
    const Safetensors file = Safetensors::Open(dir / "model.safetensors").value();
    EXPECT_EQ(values(file, names.first), std::vector<double>(rows.begin(), rows.begin() + 16 * 24));
    EXPECT_EQ(values(file, names.second), std::vector<double>(rows.begin() + 16 * 24, rows.end()));
    EXPECT_EQ(file.Find("model.layers.0.self_attn.k_proj.weight")->shape, (std::vector<int64_t>{12, 24}));
    EXPECT_EQ(file.Find("model.layers.0.input_layernorm.weight")->shape, std::vector<int64_t>{24});
    EXPECT_EQ(file.Find("lm_head.weight"), nullptr);
    EXPECT_EQ(file.metadata().at("format"), "pt");
    EXPECT_TRUE(file.has_checksums());
    const int64_t q_norm = config.qk_norm == QkNorm::kWhole ? 24 : 6;
    if (config.qk_norm == QkNorm::kNone) {
      EXPECT_EQ(file.Find("model.layers.0.self_attn.q_norm.weight"), nullptr);
    } else {
      EXPECT_EQ(file.Find("model.layers.0.self_attn.q_norm.weight")->shape, std::vector<int64_t>{q_norm});
    }
  }
}

TEST(LoadModel, ShardsAndHalfPrecisionAreRead) {
  const TempDir dir;
  TestContext t(1);
  Model model(TinyMoe(), DType::kF32, true);
  FillParameters(model, 13, t.ctx);
  for (const Parameter& p : model.parameters().all()) {  // values that float16 holds exactly
    for (float& x : p.value.span()) x = std::round(x * 256) / 256;
  }
  const std::string whole = Subfolder(dir, "whole"), sharded = Subfolder(dir, "sharded");
  ASSERT_TRUE(SaveModel(model, whole, DType::kF32));
  std::vector<Loose> tensors = ReadAll(whole);
  const int64_t half = static_cast<int64_t>(tensors.size()) / 2;
  nlohmann::json index = {{"metadata", {{"total_size", 0}}}, {"weight_map", nlohmann::json::object()}};
  const std::vector<Loose> parts[] = {{tensors.begin(), tensors.begin() + half}, {tensors.begin() + half, tensors.end()}};
  for (int i = 0; i < 2; ++i) {
    const std::string file = fmt::format("model-0000{}-of-00002.safetensors", i + 1);
    std::vector<TensorInfo> infos;
    for (const Loose& tensor : parts[i]) {
      infos.push_back(tensor.info);
      infos.back().dtype = DType::kF16;
      index["weight_map"][tensor.info.name] = file;
    }
    auto writer = SafetensorsWriter::Create(sharded + "/" + file, infos).value();
    for (const Loose& tensor : parts[i]) {
      const auto* values = reinterpret_cast<const float*>(tensor.bytes.data());
      ASSERT_TRUE(writer.AppendFloats(tensor.info.name, {values, tensor.bytes.size() / 4}));
    }
    ASSERT_TRUE(writer.Commit());
  }
  WriteFile(sharded + "/model.safetensors.index.json", index.dump());
  WriteFile(sharded + "/config.json", ReadFile(whole + "/config.json"));
  const auto loaded = LoadModel(sharded, {.format = DType::kF32, .training = true}, t.ctx);
  ASSERT_TRUE(loaded) << loaded.error().Message();
  for (const Parameter& p : model.parameters().all()) {
    ExpectSameBits((*loaded)->parameters().Find(p.name)->value.span(), p.value.span());
  }
}

class BadCheckpoint : public testing::Test {
 protected:
  BadCheckpoint() : folder_(dir_.path().string()) {
    Model model(TinyMoe(), DType::kF32, true);
    FillParameters(model, 13, t_.ctx);
    EXPECT_TRUE(SaveModel(model, folder_, DType::kF32));
  }
  // The error's `what`; `where` is checked to be the folder or a file in it.
  std::string LoadError() {
    const auto loaded = LoadModel(folder_, {}, t_.ctx);
    if (loaded) return "none";
    EXPECT_EQ(loaded.error().where.find(folder_), 0u) << loaded.error().where;
    EXPECT_EQ(loaded.error().Message().find('\n'), std::string::npos);
    const auto trained = LoadModel(folder_, {.training = true}, t_.ctx);
    EXPECT_EQ(trained.error().Message(), loaded.error().Message());
    return loaded.error().what;
  }
  template <class Change>
  void Rewrite(Change&& change) {
    std::vector<Loose> tensors = ReadAll(folder_);
    change(tensors);
    WriteAll(path(), tensors);
  }
  void Configure(const char* key, const nlohmann::json& value) {
    nlohmann::json config = nlohmann::json::parse(ReadFile(folder_ + "/config.json"));
    config[key] = value;
    WriteFile(folder_ + "/config.json", config.dump());
  }
  std::string path() const { return folder_ + "/model.safetensors"; }
  static size_t Index(const std::vector<Loose>& tensors, const std::string& name) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (tensors[i].info.name == name) return i;
    }
    throw std::runtime_error("no tensor " + name);
  }

  TempDir dir_;
  std::string folder_;
  TestContext t_{1};
};
constexpr const char* kExpertTensor = "model.layers.1.block_sparse_moe.experts.2.w2.weight";

TEST_F(BadCheckpoint, IsFineBefore) {
  EXPECT_EQ(LoadError(), "none");
}

TEST_F(BadCheckpoint, Trap25_AMissingExpertTensorIsRefused) {  // never zeros in its place
  Rewrite([](auto& tensors) { tensors.erase(tensors.begin() + static_cast<int64_t>(Index(tensors, kExpertTensor))); });
  EXPECT_EQ(LoadError(), fmt::format("tensor '{}' is missing, expected one of shape [24,16]", kExpertTensor));
}

TEST_F(BadCheckpoint, UnknownTensors) {
  Rewrite([](auto& tensors) {
    tensors.push_back({{.name = "model.layers.2.extra\n", .shape = {1}}, std::vector<std::byte>(4)});
  });
  EXPECT_EQ(LoadError(), "got 1 unknown tensor: 'model.layers.2.extra\\x0a', expected only those that config.json asks for");
  Rewrite([](auto& tensors) {
    for (const char* name : {"a", "b", "c"}) tensors.push_back({{.name = name, .shape = {1}}, std::vector<std::byte>(4)});
  });
  EXPECT_EQ(LoadError(),
            "got 4 unknown tensors: 'model.layers.2.extra\\x0a', 'a', 'b', ..., expected only those that config.json asks for");
}

TEST_F(BadCheckpoint, RotaryTablesArePassedOver) {
  Rewrite([](auto& tensors) {
    tensors.push_back({{.name = "model.layers.0.self_attn.rotary_emb.inv_freq", .shape = {3}}, std::vector<std::byte>(12)});
  });
  EXPECT_EQ(LoadError(), "none");
}

TEST_F(BadCheckpoint, WrongShapeAndType) {
  Rewrite([](auto& tensors) {
    std::swap(tensors[Index(tensors, kExpertTensor)].info.shape[0], tensors[Index(tensors, kExpertTensor)].info.shape[1]);
  });
  EXPECT_EQ(LoadError(), fmt::format("tensor '{}' has shape [16,24], expected [24,16] by config.json", kExpertTensor));
  Rewrite([](auto& tensors) {
    tensors[Index(tensors, kExpertTensor)].info.shape = {24, 16},
                           tensors[Index(tensors, kExpertTensor)].info.dtype = DType::kI32;
  });
  EXPECT_EQ(LoadError(), fmt::format("tensor '{}' has dtype i32, expected f32, bf16 or f16", kExpertTensor));
}

TEST_F(BadCheckpoint, OfAnotherConfiguration) {
  Configure("num_local_experts", 5);
  EXPECT_EQ(LoadError(),
            "tensor 'model.layers.0.block_sparse_moe.gate.weight' has shape [4,24], expected [5,24] by config.json");
  Configure("num_local_experts", 4);
  Configure("num_hidden_layers", 1);
  EXPECT_EQ(LoadError().find("got 19 unknown tensors: 'model.layers.1."), 0u) << LoadError();
  Configure("num_hidden_layers", 3);
  EXPECT_EQ(LoadError(), "tensor 'model.layers.2.input_layernorm.weight' is missing, expected one of shape [24]");
  Configure("num_hidden_layers", 2);
  Configure("tie_word_embeddings", false);
  EXPECT_EQ(LoadError(), "tensor 'lm_head.weight' is missing, expected one of shape [41,24]");
}

TEST_F(BadCheckpoint, AHeadBesideTiedEmbeddingsMustBeTheSame) {
  Rewrite([](auto& tensors) {
    Loose head = tensors[Index(tensors, "model.embed_tokens.weight")];
    head.info.name = "lm_head.weight";
    tensors.push_back(head);
  });
  EXPECT_EQ(LoadError(), "none");
  Rewrite([](auto& tensors) { tensors.back().bytes[17] ^= std::byte{1}; });
  EXPECT_EQ(LoadError(),
            "tensor 'lm_head.weight' differs from 'model.embed_tokens.weight', expected the same: config.json ties them");
}

TEST_F(BadCheckpoint, AnyFlippedBitOrTruncationIsSeen) {
  const std::string good = ReadFile(path());
  for (size_t at = 8; at < good.size(); at += 509) {  // header and tensors
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
    WriteFile(path(), bad);
    EXPECT_NE(LoadError(), "none") << "byte " << at;
  }
  std::string bad = good;
  bad[good.size() - 5] ^= 1;
  WriteFile(path(), bad);
  EXPECT_EQ(LoadError().find("tensor 'model.norm.weight': is damaged: got checksum "), 0u) << LoadError();
  for (const size_t size : {size_t{0}, size_t{7}, size_t{100}, good.size() - 1}) {
    WriteFile(path(), std::string_view(good).substr(0, size));
    EXPECT_NE(LoadError(), "none") << size << " bytes";
  }
}

TEST_F(BadCheckpoint, MissingOrBrokenFiles) {
  fs::remove(path());
  EXPECT_NE(LoadError(), "none");
  WriteFile(folder_ + "/config.json", "{\"model_type\": ");
  EXPECT_NE(LoadError(), "none");
  fs::remove(folder_ + "/config.json");
  EXPECT_NE(LoadError(), "none");
  const auto loaded = LoadModel(folder_ + "/nowhere", {}, t_.ctx);
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().what, "is no model folder: there is no such folder");
}

TEST(BadModelFolder, OneWithoutConfigNamesTheModelInIt) {
  const TempDir dir;
  TestContext t;
  const auto loaded = LoadModel(dir.path().string(), {}, t.ctx);
  ASSERT_FALSE(loaded.has_value());
  EXPECT_EQ(loaded.error().what, "got a folder without config.json, expected a model");
  for (const char* name : {"b", "a", "empty"}) fs::create_directory(dir / name);
  WriteFile(dir / "b/config.json", "{}"), WriteFile(dir / "a/config.json", "{}");
  const auto config = LoadModelConfig(dir.path().string());
  ASSERT_FALSE(config.has_value());
  EXPECT_EQ(config.error().where, dir.path().string());
  EXPECT_EQ(config.error().what, "got a folder without config.json, expected a model; " + dir / "a" + "?");
}

TEST_F(BadCheckpoint, AFailedSaveLeavesTheOldOne) {
  const std::string before = ReadFile(path());
  Model model(TinyMoe(), DType::kF32, true);
  FillParameters(model, 14, t_.ctx);
  EXPECT_FALSE(SaveModel(model, folder_ + "/nowhere", DType::kF32));
  EXPECT_EQ(ReadFile(path()), before);
  EXPECT_TRUE(SaveModel(model, folder_, DType::kF32));
  EXPECT_NE(ReadFile(path()), before);
  EXPECT_EQ(LoadError(), "none");
}

}  // namespace
}  // namespace moe::test
