#pragma once
// Models from Hugging Face folders: config.json, model.safetensors or its shards.

#include <memory>
#include <string>

#include "moe/files/safetensors.h"
#include "moe/model/model.h"

namespace moe {

struct LoadOptions {
  DType format = DType::kBf16;  // of the packs
  bool training = false;        // masters, gradients and transposed packs too
};

// Every tensor is accounted for. Errors, one line each, name file and tensor: missing, unknown, another shape or type than the
// config asks for, a checksum (verified where there are any) that does not fit. Loading for inference goes matrix by matrix,
// and never holds a second copy of the model.
Result<std::unique_ptr<Model>> LoadModel(const std::string& folder, const LoadOptions& options, ExecContext& ctx);

// The weights of a folder into a model that trains and has as many of each: checked as LoadModel checks them. What only the
// model has, a selection bias, stays as it is; what only the folder has is an error.
Status LoadWeights(const std::string& folder, Model& model, ExecContext& ctx);

// The files of a model, opened and checked: checksums, and every tensor that the config asks for and no other.
Result<ModelFiles> OpenModelFiles(const std::string& folder, const ModelConfig& config);

// A model folder, a config.json, or the name of a preset (presets.h).
Result<ModelConfig> LoadModelConfig(const std::string& path_or_preset);

}  // namespace moe
