#pragma once
// A folder with a random tiny model of bytes, as training would leave it.

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "moe/files/tokenizer.h"
#include "moe/model/save.h"
#include "testing/temp_dir.h"
#include "testing/test_context.h"
#include "testing/tiny_model.h"
#include "tests/cli/run_moe.h"

namespace moe::test {

inline constexpr int64_t kTinyContext = 32;

inline void MakeModelFolder(const std::string& folder, int64_t context = kTinyContext) {
  const Tokenizer tokenizer = Tokenizer::Bytes();
  ModelConfig config = TinyMoe();
  config.vocab_size = tokenizer.vocab_size();
  config.context = context;
  config.bos_id = tokenizer.bos_id();
  config.eos_id = tokenizer.eos_id();
  TestContext t;
  Model model(config, DType::kF32, false);
  FillParameters(model, 11, t.ctx);
  std::filesystem::create_directories(folder);
  ASSERT_TRUE(SaveModel(model, folder, DType::kF32));
  ASSERT_TRUE(tokenizer.Save(folder));
}

// One model for all tests of a suite, which only read it; a copy for those that damage it.
class WithModel : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TempDir;
    MakeModelFolder(*shared_ / "model");
  }
  static void TearDownTestSuite() {
    delete shared_;
    shared_ = nullptr;
  }
  static std::string model() { return *shared_ / "model"; }
  std::string CopyOfModel() const {
    std::filesystem::copy(model(), dir_ / "copy", std::filesystem::copy_options::recursive);
    return dir_ / "copy";
  }
  std::string File(const std::string& name, const std::string& bytes) const {
    WriteFile(dir_ / name, bytes);
    return dir_ / name;
  }
  std::string Text() const {
    std::string text;
    for (int i = 0; i < 12; ++i) text += "The quick brown <fox> jumps over the lazy dog.\n";
    return text;
  }

  TempDir dir_;

 private:
  static inline TempDir* shared_ = nullptr;
};

}  // namespace moe::test
