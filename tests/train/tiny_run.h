#pragma once
// A run that takes a fraction of a second, and what is left of it.

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "moe/train/run.h"
#include "testing/random.h"
#include "testing/temp_dir.h"

namespace moe::test {

// Text with something to learn: words drawn from a few, so that letters follow from letters.
inline std::string TinyText(uint64_t seed, int64_t bytes) {
  static const std::vector<std::string> words = {"the ", "cat ", "sat ", "on ", "a ", "mat.\n", "dog ", "ran ", "and ", "so "};
  Rng rng(seed);
  std::string text;
  while (std::ssize(text) < bytes) text += words[static_cast<size_t>(rng.Below(std::ssize(words)))];
  return text;
}

inline constexpr const char* kTinyRecipe = R"(
[model]
layers = 2
hidden = 32
heads = 2
context = 16
experts = 4
top_k = 2
expert_width = 16
executor = "grouped"

[tokenizer]
kind = "bytes"

[data]
files = ["train.txt"]
validation = ["valid.txt"]

[train]
steps = 12
batch_tokens = 64
micro_batch_tokens = 32
lr = 0.01
eval_every = 4
checkpoint_every = 3

[router]
capacity_factor = 1.25
)";

// A folder with r.toml and its texts.
inline void WriteTinyRun(const TempDir& dir) {
  WriteFile(dir / "r.toml", kTinyRecipe);
  WriteFile(dir / "train.txt", TinyText(1, 3000));
  WriteFile(dir / "valid.txt", TinyText(2, 300));
}

// The lines of metrics.jsonl without what clocks say.
inline std::vector<nlohmann::json> Metrics(const std::string& folder) {
  std::istringstream file(ReadFile(folder + "/metrics.jsonl"));
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(file, line);) {
    lines.push_back(nlohmann::json::parse(line));
    for (const char* key : {"seconds", "seconds_by_part", "tokens_per_s", "validation_seconds"}) lines.back().erase(key);
  }
  return lines;
}

// Both runs ended alike: models byte for byte, and every line of metrics.
inline void ExpectSameRun(const std::string& a, const std::string& b) {
  for (const char* name :
       {"/model.safetensors", "/best/model.safetensors", "/config.json", "/tokenizer.json", "/recipe.toml"}) {
    EXPECT_TRUE(ReadFile(a + name) == ReadFile(b + name)) << name << " differs";
  }
  EXPECT_EQ(Metrics(a), Metrics(b));
}

}  // namespace moe::test
