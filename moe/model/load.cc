#include "moe/model/load.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "moe/files/json.h"
#include "moe/model/hf_config.h"
#include "moe/model/hf_tensors.h"
#include "moe/model/model_pass.h"
#include "moe/model/presets.h"

namespace moe {
namespace {

bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBf16 || dtype == DType::kF16;
}

// Tables that old converters stored, which follow from the config.
bool IsRotaryTable(const std::string& name) {
  return name.ends_with("rotary_emb.inv_freq");
}

// Everything the config asks for is there, in its shape.
Status CheckTensors(const ModelConfig& config, const ModelFiles& files, const std::string& folder,
                    std::unordered_set<std::string>& names) {
  return ForEachHfMatrix(config, [&](const HfMatrix& matrix) -> Status {
    for (const HfPiece& piece : matrix.pieces) {
      const StoredTensor* tensor = files.Find(piece.name);
      const std::vector<int64_t> shape = matrix.Shape(piece);
      if (tensor == nullptr) {
        return Err(folder, "tensor '{}' is missing, expected one of shape [{}]", piece.name, fmt::join(shape, ","));
      }
      if (tensor->shape != shape) {
        return Err(tensor->file, "tensor '{}' has shape [{}], expected [{}] by config.json", piece.name,
                   fmt::join(tensor->shape, ","), fmt::join(shape, ","));
      }
      if (!IsFloat(tensor->dtype)) {
        return Err(tensor->file, "tensor '{}' has dtype {}, expected f32, bf16 or f16", piece.name, Name(tensor->dtype));
      }
      names.insert(piece.name);
    }
    return {};
  });
}

// A head beside tied embeddings is what some converters write: harmless when it says the same.
Status CheckTiedHead(const StoredTensor& head, const StoredTensor& embedding) {
  if (head.dtype == embedding.dtype && std::ranges::equal(head.data, embedding.data)) return {};
  return Err(head.file, "tensor '{}' differs from '{}', expected the same: config.json ties them", kHeadTensor,
             kEmbeddingTensor);
}

// And nothing else is.
Status CheckNoStrangers(const ModelConfig& config, const ModelFiles& files, const std::unordered_set<std::string>& names) {
  constexpr int64_t kShown = 3;
  int64_t strangers = 0;
  std::string list, file;
  for (const std::string& name : files.names()) {
    if (names.contains(name) || IsRotaryTable(name)) continue;
    if (config.tie_embeddings && name == kHeadTensor) {
      MOE_TRY(CheckTiedHead(*files.Find(name), *files.Find(kEmbeddingTensor)));
      continue;
    }
    if (file.empty()) file = files.Find(name)->file;
    if (strangers++ < kShown) list += (list.empty() ? "'" : ", '") + Printable(name) + "'";
  }
  if (strangers == 0) return {};
  return Err(file, "got {} unknown tensor{}: {}{}, expected only those that config.json asks for", strangers,
             strangers == 1 ? "" : "s", list, strangers > kShown ? ", ..." : "");
}

// The tensors of a matrix, put together in `out` [rows, cols]. `scratch` holds one tensor that has to be interleaved.
Status Assemble(const HfMatrix& matrix, const ModelFiles& files, float* out, std::vector<float>& scratch) {
  for (const HfPiece& piece : matrix.pieces) {
    const auto size = static_cast<size_t>(piece.rows * matrix.cols);
    const StoredTensor& tensor = *files.Find(piece.name);
    const std::vector<int64_t> shape = matrix.Shape(piece);
    if (piece.layout == HfPiece::kRows) {
      MOE_TRY(ReadFloats(tensor, shape, {out + piece.first_row * matrix.cols, size}));
      continue;
    }
    scratch.resize(std::max(scratch.size(), size));
    MOE_TRY(ReadFloats(tensor, shape, std::span(scratch).first(size)));
    for (int64_t r = 0, run = piece.RunLength(); r < piece.rows; r += run) {
      std::memcpy(out + piece.MatrixRow(r) * matrix.cols, scratch.data() + r * matrix.cols,
                  static_cast<size_t>(run * matrix.cols) * sizeof(float));
    }
  }
  return {};
}

// Of `config`, as the files have them.
Status ReadValues(const ModelConfig& config, const ModelFiles& files, const std::string& folder, Model& model,
                  ExecContext& ctx) {
  std::unordered_map<const Parameter*, PackedParameter*> packs;
  ModelPass::ForEachPacked(model, false, [&](PackedParameter& packed) { packs[&packed.parameter()] = &packed; });
  std::vector<float> scratch, whole;
  const auto read = [&](const HfMatrix& matrix) -> Status {
    Parameter* found = model.parameters().Find(matrix.parameter);
    if (found == nullptr) {
      return Err(folder, "holds '{}', which the model to train has not", matrix.pieces.front().name);
    }
    Parameter& parameter = *found;
    const int64_t size = matrix.rows * matrix.cols, count = std::max<int64_t>(1, parameter.experts);
    if (parameter.value.size() != count * size || matrix.index >= count) {
      return Err(folder, "'{}' has {} values, expected {} of the model to train", matrix.pieces.front().name, size,
                 parameter.value.size() / count);
    }
    if (!parameter.value.empty()) return Assemble(matrix, files, parameter.value.data() + matrix.index * size, scratch);
    whole.resize(std::max(whole.size(), static_cast<size_t>(size)));
    MOE_TRY(Assemble(matrix, files, whole.data(), scratch));
    packs.at(&parameter)->PackOne(matrix.index, {whole.data(), matrix.rows, matrix.cols}, false, ctx);
    return {};
  };
  MOE_TRY(ForEachHfMatrix(config, read));
  model.Repack(ctx);
  return {};
}

Result<ModelConfig> LoadConfigFile(const std::string& path) {
  MOE_TRY(const nlohmann::json json, LoadJson(path));
  return ParseHfConfig(json, path);
}

// Of a folder's config.json. A folder of runs has models one level down: the error names one.
Result<ModelConfig> LoadConfigOf(const std::string& folder) {
  const std::string path = folder + "/config.json";
  std::error_code ignored;
  if (std::filesystem::exists(path, ignored)) return LoadConfigFile(path);
  std::vector<std::string> models;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (std::filesystem::exists(entry.path() / "config.json", ignored)) models.push_back(entry.path().string());
  }
  const std::string hint = models.empty() ? "" : fmt::format("; {}?", *std::ranges::min_element(models));
  return Err(folder, "got a folder without config.json, expected a model{}", hint);
}

}  // namespace

Result<ModelFiles> OpenModelFiles(const std::string& folder, const ModelConfig& config) {
  MOE_TRY(ModelFiles files, ModelFiles::Open(folder));
  for (const Safetensors& shard : files.shards()) {
    if (shard.has_checksums()) MOE_TRY(shard.VerifyChecksums());
  }
  std::unordered_set<std::string> names;
  MOE_TRY(CheckTensors(config, files, folder, names));
  MOE_TRY(CheckNoStrangers(config, files, names));
  return files;
}

Result<std::unique_ptr<Model>> LoadModel(const std::string& folder, const LoadOptions& options, ExecContext& ctx) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored)) return Err(folder, "is no model folder: there is no such folder");
  MOE_TRY(const ModelConfig config, LoadConfigOf(folder));
  MOE_TRY(const ModelFiles files, OpenModelFiles(folder, config));
  auto model = std::make_unique<Model>(config, options.format, options.training, /*masters=*/options.training);
  MOE_TRY(ReadValues(config, files, folder, *model, ctx));
  return model;
}

Status LoadWeights(const std::string& folder, Model& model, ExecContext& ctx) {
  MOE_TRY(const ModelConfig config, LoadConfigOf(folder));
  const auto gate_of = [](const RouterConfig& router) {
    return router.gate == GateNetwork::kLinear ? "the linear gate"
                                               : fmt::format("{} of {}", NameIn(kGateNetworks, router.gate), router.gate_width);
  };
  for (size_t l = 0; l < std::min(config.layers.size(), model.config().layers.size()); ++l) {
    const std::string got = gate_of(config.layers[l].moe.router), expected = gate_of(model.config().layers[l].moe.router);
    if (got != expected) {  // whose matrices may have as many values
      return Err(folder, "layer {}: got {}, expected {}, as the model to train has it", l, got, expected);
    }
  }
  MOE_TRY(const ModelFiles files, OpenModelFiles(folder, config));
  return ReadValues(config, files, folder, model, ctx);
}

Result<ModelConfig> LoadModelConfig(const std::string& path_or_preset) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path_or_preset, ignored)) return LoadConfigOf(path_or_preset);
  if (path_or_preset.ends_with(".toml") && std::filesystem::exists(path_or_preset, ignored)) {
    return Err(path_or_preset, "got a recipe, expected a model; `moe train {}` makes one of it", path_or_preset);
  }
  if (std::filesystem::exists(path_or_preset, ignored)) return LoadConfigFile(path_or_preset);
  const bool looks_like_path = path_or_preset.find('/') != std::string::npos || path_or_preset.ends_with(".json");
  if (looks_like_path) return Err(path_or_preset, "there is no such file or folder");
  return PresetConfig(path_or_preset);
}

}  // namespace moe
