// A dense model and the mixture made of it say the same.
#include "moe/model/upcycle.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "moe/files/safetensors.h"
#include "moe/model/load.h"
#include "moe/model/save.h"
#include "testing/matchers.h"
#include "testing/reference/twin_gradients.h"
#include "testing/temp_dir.h"
#include "testing/test_context.h"

namespace moe::test {
namespace {

namespace fs = std::filesystem;

ModelConfig DenseConfig(QkNorm norm, bool tied) {
  ModelConfig config = TinyDense();
  config.qk_norm = norm, config.tie_embeddings = tied;
  config.layers[0].ffn_width = config.layers[1].ffn_width = 64;
  return config;
}

// The dense model, saved, with its weights rounded to what the file keeps.
std::string SaveDense(const TempDir& dir, const ModelConfig& config, DType dtype, uint64_t seed = 3) {
  TestContext t;
  Model model(config, DType::kF32, true);
  FillParameters(model, seed, t.ctx);
  const std::string folder = dir / "dense";
  fs::create_directories(folder);
  EXPECT_TRUE(SaveModel(model, folder, dtype));
  WriteFile(folder + "/tokenizer.json", "{}");
  return folder;
}

std::vector<double> ExactLogits(const Model& model, const TinyBatch& batch) {
  auto twin = MakeTwin<double>(model, nullptr);
  twin.drop = false;
  twin.Loss(batch.rows, batch.targets, 1, 0);
  std::vector<double> out;
  for (const auto& row : twin.logits) out.insert(out.end(), row.begin(), row.end());
  return out;
}
std::vector<double> Logits(const Model& model, const TinyBatch& batch, TestContext& t) {
  t.arena.Reset();
  const auto logits = model.Forward(batch.step(), nullptr, t.ctx).value();
  std::vector<double> out;
  for (int64_t r = 0; r < logits.rows; ++r) out.insert(out.end(), logits.row(r), logits.row(r) + logits.cols);
  return out;
}
double Furthest(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]));
  return most;
}

// Both are float32 programs of one function: the mixture is no further from its exact value than the dense model, but for what
// the sums over slices and copies add.
TEST(Upcycle, Trap24_LogitsAreTheDenseModelsWithinRounding) {
  const std::vector<UpcycleOptions> choices = {{.experts = 4, .top_k = 2},
                                               {.experts = 3, .top_k = 3},
                                               {.experts = 8, .top_k = 4, .split = 2},
                                               {.experts = 8, .top_k = 4, .split = 4},
                                               {.experts = 12, .top_k = 8, .split = 4, .seed = 7}};
  for (const QkNorm norm : {QkNorm::kNone, QkNorm::kPerHead, QkNorm::kWhole}) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      const TempDir dir;
      const ModelConfig dense_config = DenseConfig(norm, norm == QkNorm::kPerHead);
      const std::string folder = SaveDense(dir, dense_config, dtype);
      TestContext t(2);
      const auto dense = LoadModel(folder, {.format = DType::kF32, .training = true}, t.ctx).value();
      const TinyBatch batch = RandomBatch(dense->config(), {9, 4}, 5);
      const std::vector<double> exact = ExactLogits(*dense, batch), of_dense = Logits(*dense, batch, t);
      const double rounding = Furthest(of_dense, exact);
      ASSERT_GT(rounding, 0);
      for (size_t i = 0; i < choices.size(); ++i) {
        SCOPED_TRACE(fmt::format("norm {} {} choice {}", static_cast<int>(norm), Name(dtype), i));
        const std::string out = dir / fmt::format("moe{}", i);
        const Status made = Upcycle(folder, out, choices[i]);
        ASSERT_TRUE(made) << made.error().Message();
        const auto moe = LoadModel(out, {.format = DType::kF32}, t.ctx);
        ASSERT_TRUE(moe) << moe.error().Message();
        const MoeConfig& layer = (*moe)->config().layers[1].moe;
        EXPECT_EQ(layer.router.num_experts, choices[i].experts);
        EXPECT_EQ(layer.router.top_k, choices[i].top_k);
        EXPECT_EQ(layer.expert_width, 64 / choices[i].split);
        EXPECT_LT(Furthest(Logits(**moe, batch, t), exact), kTimesFloat32 * rounding);
        const LogitDifference difference = CompareLogits(folder, out, 20, t.ctx).value();
        EXPECT_LT(difference.largest, 2 * kTimesFloat32 * rounding);
        EXPECT_GT(difference.largest_logit, 0.1);
        EXPECT_EQ(ReadFile(out + "/tokenizer.json"), "{}");
      }
    }
  }
}

TEST(Upcycle, CopiesAreTheSlicesAndRouterRowsGoByCopies) {
  const TempDir dir;
  const std::string folder = SaveDense(dir, DenseConfig(QkNorm::kPerHead, true), DType::kBf16), out = dir / "moe";
  ASSERT_TRUE(Upcycle(folder, out, {.experts = 6, .top_k = 2, .split = 2}));
  const ModelFiles dense = ModelFiles::Open(folder).value(), moe = ModelFiles::Open(out).value();
  const auto values = [](const ModelFiles& files, const std::string& name) {
    const StoredTensor* tensor = files.Find(name);
    EXPECT_NE(tensor, nullptr) << name;
    EXPECT_EQ(tensor->dtype, DType::kBf16);
    std::vector<float> out_values(static_cast<size_t>(tensor->size()));
    EXPECT_TRUE(ReadFloats(*tensor, tensor->shape, out_values));
    return out_values;
  };
  const std::string layer = "model.layers.1.mlp.";
  const auto up = values(dense, layer + "up_proj.weight"), down = values(dense, layer + "down_proj.weight");
  for (int64_t e = 0; e < 6; ++e) {
    const std::string expert = fmt::format("{}experts.{}.", layer, e);
    const auto of_up = values(moe, expert + "up_proj.weight"), of_down = values(moe, expert + "down_proj.weight");
    for (int64_t f = 0; f < 32; ++f) {
      for (int64_t d = 0; d < 24; ++d) {
        ASSERT_EQ(of_up[static_cast<size_t>(f * 24 + d)], up[static_cast<size_t>((e % 2 * 32 + f) * 24 + d)]);
        ASSERT_EQ(of_down[static_cast<size_t>(d * 32 + f)], down[static_cast<size_t>(d * 64 + e % 2 * 32 + f)]);
      }
    }
  }
  const auto router = values(moe, layer + "gate.weight");
  const auto row = [&](size_t e) {
    return std::vector<float>(router.begin() + static_cast<int64_t>(e * 24),
                              router.begin() + static_cast<int64_t>((e + 1) * 24));
  };
  for (size_t e = 0; e < 6; e += 2) {
    EXPECT_EQ(row(e), row(e + 1));
    EXPECT_NE(row(e), row((e + 2) % 6));
  }
  EXPECT_NE(row(0), std::vector<float>(24, 0.0f));
}

TEST(Upcycle, NoisePartsCopiesAndTheSeedDecidesHow) {
  const TempDir dir;
  const std::string folder = SaveDense(dir, DenseConfig(QkNorm::kPerHead, true), DType::kF32);
  TestContext t;
  const auto down_of = [&](const std::string& name, UpcycleOptions options) {
    EXPECT_TRUE(Upcycle(folder, dir / name, options));
    return LoadModel(dir / name, {.format = DType::kF32, .training = true}, t.ctx).value();
  };
  const UpcycleOptions plain{.experts = 2, .top_k = 2}, noisy{.experts = 2, .top_k = 2, .noise = 0.1};
  const auto a = down_of("a", plain), b = down_of("b", noisy), again = down_of("again", noisy);
  UpcycleOptions other_seed = noisy;
  other_seed.seed = 2;
  const auto c = down_of("c", other_seed);
  const auto down = [](const std::unique_ptr<Model>& m, int64_t e) {
    const MatView<float> slice = m->parameters().Find("layers.0.moe.experts.down")->value.slice(e);
    return std::vector<float>(slice.data, slice.data + slice.size());
  };
  EXPECT_EQ(down(a, 0), down(a, 1));
  EXPECT_NE(down(b, 0), down(b, 1));
  EXPECT_EQ(down(b, 0), down(again, 0));
  EXPECT_NE(down(b, 0), down(c, 0));
  double squares = 0, noise = 0;
  for (size_t i = 0; i < down(a, 0).size(); ++i) {
    squares += std::pow(down(a, 0)[i], 2), noise += std::pow(down(b, 0)[i] - down(a, 0)[i], 2);
  }
  // Of 24 * 64 draws: the deviation's own deviation is 1 / sqrt(2 * 1536), 2 %; five of them.
  EXPECT_NEAR(std::sqrt(noise / squares), 0.1, 0.01);
}

TEST(Upcycle, Trap24_WhatCannotBeEqualIsRefusedWithTheReason) {
  const ModelConfig dense = DenseConfig(QkNorm::kNone, true);
  const auto error = [&](const UpcycleOptions& options, const ModelConfig& config) {
    const auto made = UpcycledConfig(config, options, "M");
    return made ? "none" : made.error().Message();
  };
  EXPECT_EQ(error({.experts = 4, .top_k = 2}, dense), "none");
  EXPECT_EQ(error({.experts = 4, .top_k = 2}, TinyMoe()), "[M] got a model with experts, expected a dense one");
  EXPECT_EQ(
      error({.experts = 4, .top_k = 1}, dense),
      "[--top-k] got 1, expected 2 or more: the gate of one chosen expert is always 1, and the router never learns, or it is "
      "not, and the output is not the dense model's");
  EXPECT_EQ(error({.experts = 1, .top_k = 1}, dense), "[--experts] got 1, expected 2 to 65536");
  EXPECT_EQ(error({.experts = 4, .top_k = 5}, dense), "[--top-k] got 5, expected 1 to --experts 4");
  EXPECT_EQ(error({.experts = 5, .top_k = 2, .split = 2}, dense),
            "[--experts] got 5, expected a multiple of --split 2: whole copies of 2 slices each");
  EXPECT_EQ(
      error({.experts = 8, .top_k = 3, .split = 2}, dense),
      "[--top-k] got 3, expected a multiple of --split 2: a token must reach all slices of a copy, or a part of what the FFN "
      "says is missing");
  EXPECT_EQ(error({.experts = 16, .top_k = 8, .split = 8}, dense),
            "[--split] got 8, expected slices of a multiple of 16: layer 0 has an FFN of width 64");
  EXPECT_EQ(error({.experts = 4, .top_k = 2, .split = 0}, dense), "[--split] got 0, expected 1 or more slices");
  EXPECT_EQ(error({.experts = 4, .top_k = 2, .noise = -1}, dense), "[--noise] got -1, expected a number of at least 0");
}

TEST(Upcycle, NothingIsWrittenOverAndWhatStopsLeavesNoModel) {
  const TempDir dir;
  const std::string folder = SaveDense(dir, DenseConfig(QkNorm::kNone, true), DType::kF32), out = dir / "moe";
  fs::create_directories(out);
  WriteFile(out + "/mine.txt", "x");
  Status status = Upcycle(folder, out, {});
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().Message(), "[" + out + "] already holds something, expected a new or empty folder");
  EXPECT_FALSE(fs::exists(out + "/model.safetensors"));
  EXPECT_FALSE(Upcycle(dir / "none", dir / "new", {}));
  int64_t calls = 0;
  status = Upcycle(folder, dir / "stopped", {.on_progress = [&](int64_t done, int64_t total) {
                     EXPECT_LT(done, total);
                     return ++calls < 20;
                   }});
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().exit_code, 130);
  EXPECT_EQ(calls, 20);
  EXPECT_FALSE(fs::exists(dir / "stopped"));
  ASSERT_TRUE(Upcycle(folder, dir / "stopped", {}));  // and the name is free
}

}  // namespace
}  // namespace moe::test
