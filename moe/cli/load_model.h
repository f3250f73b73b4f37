#pragma once
// A model folder, ready to run; refused before weights are read where tokenizer or memory would not do.

#include <memory>
#include <string>

#include "moe/files/tokenizer.h"
#include "moe/model/model.h"

namespace moe {

// All of a folder but its weights.
struct ModelFolder {
  std::string path;
  ModelConfig config;
  Tokenizer tokenizer;
  DType format;  // what products will compute in
};

// dtype: "f32" or "bf16"; empty: the checkpoint's own (torch_dtype of config.json; bf16 for f16). Errors: another dtype, no
// such folder, a config or tokenizer that is missing, malformed or does not fit the other.
Result<ModelFolder> OpenModelFolder(const std::string& path, const std::string& dtype);

// What is to be run, for the memory it needs.
struct InferenceShape {
  int64_t rows = 512;                    // of one step
  int64_t sequences = 0, positions = 0;  // of the KV cache
};
// Errors: too little free memory (with the figures), and those of LoadModel.
Result<std::unique_ptr<Model>> LoadForInference(const ModelFolder& folder, const InferenceShape& shape, ExecContext& ctx);

}  // namespace moe
