#include "moe/cli/load_model.h"

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "moe/base/cpu_info.h"
#include "moe/base/progress.h"
#include "moe/files/json.h"
#include "moe/model/load.h"

namespace moe {
namespace {

Result<DType> ChooseDType(const std::string& dtype, const std::string& folder) {
  if (dtype == "f32") return DType::kF32;
  if (dtype == "bf16") return DType::kBf16;
  if (!dtype.empty()) return UsageErr("--dtype", "got '{}', expected f32 or bf16", dtype);
  MOE_TRY(const nlohmann::json config, LoadJson((std::filesystem::path(folder) / "config.json").string()));
  for (const char* key : {"torch_dtype", "dtype"}) {
    if (!config.is_object() || !config.contains(key) || !config[key].is_string()) continue;
    const auto name = config[key].get<std::string>();
    if (name == "bfloat16" || name == "float16") return DType::kBf16;
  }
  return DType::kF32;
}

std::string Bytes(int64_t bytes) {
  return FormatBytes(static_cast<double>(bytes));
}

}  // namespace

Result<ModelFolder> OpenModelFolder(const std::string& path, const std::string& dtype) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    return Err(path, "got no such folder, expected one with config.json, model.safetensors and tokenizer.json");
  }
  if (!std::filesystem::is_directory(path, ignored)) {
    return Err(path, "got a file, expected a folder with config.json, model.safetensors and tokenizer.json");
  }
  MOE_TRY(const DType format, ChooseDType(dtype, path));
  MOE_TRY(ModelConfig config, LoadModelConfig(path));
  MOE_TRY(Tokenizer tokenizer, Tokenizer::Load(path));
  if (tokenizer.vocab_size() > config.vocab_size) {
    return Err(path, "got a tokenizer of {} tokens, expected at most the model's {}", tokenizer.vocab_size(),
               config.vocab_size);
  }
  return ModelFolder{path, std::move(config), std::move(tokenizer), format};
}

Result<std::unique_ptr<Model>> LoadForInference(const ModelFolder& folder, const InferenceShape& shape, ExecContext& ctx) {
  const MemoryNeed need = InferenceMemory(folder.config, folder.format, shape.rows, shape.sequences, shape.positions);
  const int64_t available = AvailableMemoryBytes();
  if (need.total() > available) {
    return Err("memory", "got {} free, expected at least {}: {} of weights, {} of cache, {} of activations", Bytes(available),
               Bytes(need.total()), Bytes(need.masters + need.packs), Bytes(need.kv_cache), Bytes(need.activations));
  }
  for (const LayerSpec& layer : folder.config.layers) {
    const RouterConfig& router = layer.moe.router;
    if (layer.ffn != FfnKind::kMoe || router.serves_tokens_alone()) continue;
    fmt::print(stderr, "note: {}, so results depend on which tokens are computed together\n",
               router.capacity.eval_factor > 0
                   ? fmt::format("experts of this model have a capacity in use too (eval_capacity_factor {})",
                                 router.capacity.eval_factor)
                   : std::string("experts of this model choose among tokens"));
    break;
  }
  return LoadModel(folder.path, {.format = folder.format}, ctx);
}

}  // namespace moe
