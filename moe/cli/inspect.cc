// moe inspect: what a model is, what of it one token uses, and how much memory it takes.

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "moe/base/progress.h"
#include "moe/cli/commands.h"
#include "moe/cli/common.h"
#include "moe/cli/routing_text.h"
#include "moe/files/json.h"
#include "moe/infer/generate.h"
#include "moe/model/hf_config.h"
#include "moe/model/hf_router.h"
#include "moe/model/load.h"

namespace moe {
namespace {

constexpr int64_t kMaxCount = 1 << 24;  // of rows or sequences
constexpr DType kDTypes[] = {DType::kF32, DType::kBf16};

struct InspectFlags {
  CommonFlags common;
  std::string model;
  int64_t rows = 4096, sequences = 1;
  std::optional<int64_t> context;
};

struct Inspection {
  std::string architecture;
  ModelConfig config;
  ParameterCount count;
  int64_t positions = 0;                        // of the cache of every sequence
  const LayerSpec* moe_layer = nullptr;         // the first with experts
  std::vector<MemoryNeed> inference, training;  // [kDTypes]
};

// What config.json calls itself; of a preset, the family that computes it.
Result<std::string> ArchitectureOf(const std::string& model, const ModelConfig& config_of_model) {
  const std::string family(InfoOf(FamilyOf(config_of_model)).architecture);
  std::error_code ignored;
  std::filesystem::path path(model);
  if (!std::filesystem::exists(path, ignored)) return family;
  if (std::filesystem::is_directory(path, ignored)) path /= "config.json";
  MOE_TRY(const nlohmann::json config, LoadJson(path.string()));
  if (!config.is_object()) return family;
  if (const auto names = config.find("architectures"); names != config.end() && names->is_array() && !names->empty()) {
    if (names->front().is_string()) return Printable(names->front().get<std::string>());
  }
  if (const auto type = config.find("model_type"); type != config.end() && type->is_string()) {
    return Printable(type->get<std::string>());
  }
  return family;
}

Result<Inspection> Inspect(const InspectFlags& flags) {
  Inspection result;
  MOE_TRY(result.config, LoadModelConfig(flags.model));
  MOE_TRY(result.architecture, ArchitectureOf(flags.model, result.config));
  const ModelConfig& config = result.config;
  result.count = CountParameters(config);
  for (const LayerSpec& layer : config.layers) {
    if (layer.ffn == FfnKind::kMoe && result.moe_layer == nullptr) result.moe_layer = &layer;
  }
  const int64_t positions = result.positions = flags.context.value_or(config.context);
  if (positions < 1 || positions > config.context) {
    return UsageErr("--context", "got {}, expected 1..{}, the model's", positions, config.context);
  }
  for (const DType dtype : kDTypes) {
    const int64_t rows = std::max(flags.sequences, std::min(positions, GenerateOptions{}.prefill_rows));
    result.inference.push_back(InferenceMemory(config, dtype, rows, flags.sequences, positions));
    result.training.push_back(TrainingMemory(config, dtype, flags.rows));
  }
  return result;
}

nlohmann::json LayerJson(const LayerSpec& layer) {
  if (layer.ffn == FfnKind::kDense) return {{"ffn", "dense"}, {"ffn_width", layer.ffn_width}};
  nlohmann::json json = {{"ffn", "moe"},
                         {"experts", layer.moe.router.num_experts},
                         {"top_k", layer.moe.router.top_k},
                         {"expert_width", layer.moe.expert_width},
                         {"shared_experts", layer.moe.num_shared_experts},
                         {"shared_width", layer.moe.shared_width()},
                         {"shared_expert_gate", layer.moe.shared_gate},
                         {"expert_groups", nlohmann::json::array()}};
  for (const ExpertGroup& group : layer.moe.experts()) json["expert_groups"].push_back(ToText(group));
  return json;
}

nlohmann::json RoutingJson(const RouterConfig& router) {
  return {{"score", std::string(NameIn(kRouterScores, router.score))},
          {"top_k", router.top_k},
          {"normalize", router.normalize},
          {"capacity_factor", router.capacity.factor},
          {"dropless", router.capacity.factor == 0 && router.capacity.eval_factor == 0},
          {"balance_loss", router.balance_loss},
          {"z_loss", router.z_loss},
          {"policy", RouterJson(router, PlainRouter(router.num_experts, router.top_k, true))}};
}

nlohmann::json MemoryJson(const std::vector<MemoryNeed>& needs) {
  nlohmann::json json;
  for (size_t i = 0; i < std::size(kDTypes); ++i) {
    const MemoryNeed& need = needs[i];
    nlohmann::json& parts = json[std::string(Name(kDTypes[i]))];
    for (const auto& [name, bytes] : {std::pair{"masters", need.masters},
                                      {"packs", need.packs},
                                      {"gradients", need.gradients},
                                      {"moments", need.moments},
                                      {"kv_cache", need.kv_cache},
                                      {"activations", need.activations},
                                      {"program", need.program},
                                      {"total", need.total()}}) {
      parts[name] = bytes;
    }
  }
  return json;
}

nlohmann::json ToJson(const InspectFlags& flags, const Inspection& m) {
  const ParameterCount& n = m.count;
  nlohmann::json layers = nlohmann::json::array(), bytes;
  for (const LayerSpec& layer : m.config.layers) layers.push_back(LayerJson(layer));
  for (const DType dtype : kDTypes) bytes[std::string(Name(dtype))] = n.total * SizeOf(dtype);
  return {{"architecture", m.architecture},
          {"model", flags.model},
          {"parameters_total", n.total},
          {"parameters_active", n.active},
          {"parameters",
           {{"embedding", n.embedding},
            {"head", n.head},
            {"attention", n.attention},
            {"norms", n.norms},
            {"router", n.router},
            {"experts", n.experts},
            {"shared_experts", n.shared_experts},
            {"dense_ffn", n.dense_ffn}}},
          {"experts", m.moe_layer == nullptr ? 0 : m.moe_layer->moe.router.num_experts},
          {"top_k", m.moe_layer == nullptr ? 0 : m.moe_layer->moe.router.top_k},
          {"bytes", bytes},
          {"inference", MemoryJson(m.inference)},
          {"training", MemoryJson(m.training)},
          {"routing", m.moe_layer == nullptr ? nlohmann::json::object() : RoutingJson(m.moe_layer->moe.router)},
          {"vocab_size", m.config.vocab_size},
          {"hidden", m.config.hidden},
          {"heads", m.config.num_heads},
          {"kv_heads", m.config.num_kv_heads},
          {"head_width", m.config.head_width},
          {"context", m.config.context},
          {"tie_embeddings", m.config.tie_embeddings},
          {"layers", layers}};
}

std::string LayerText(const LayerSpec& layer) {
  if (layer.ffn == FfnKind::kDense) return fmt::format("dense FFN of width {}", layer.ffn_width);
  const MoeConfig& moe = layer.moe;
  std::string text = fmt::format("{}, top-{}", ExpertsText(moe), moe.router.top_k);
  if (moe.shared_width() > 0)
    text += fmt::format(", {} shared of width {}{}", moe.num_shared_experts, moe.shared_width() / moe.num_shared_experts,
                        moe.shared_gate ? " with a gate" : "");
  return text;
}

// Consecutive layers that are alike on one line.
std::string LayersText(const std::vector<LayerSpec>& layers) {
  std::string text;
  for (size_t begin = 0, end; begin < layers.size(); begin = end) {
    const std::string line = LayerText(layers[begin]);
    for (end = begin + 1; end < layers.size() && LayerText(layers[end]) == line;) ++end;
    const std::string range = end - begin == 1 ? fmt::format("{}", begin) : fmt::format("{}-{}", begin, end - 1);
    text += fmt::format("  layers {:<9} {}\n", range, line);
  }
  return text;
}

std::string ParametersText(const Inspection& m) {
  const ParameterCount& n = m.count;
  const int64_t active_embedding = m.config.tie_embeddings ? n.embedding : m.config.hidden;
  const int64_t active_experts = n.experts - (n.total - n.active - (n.embedding - active_embedding));
  std::string text = fmt::format("\n{:<20} {:>10} {:>10}\n", "parameters", "total", "per token");
  const auto line = [&](const char* name, int64_t total, int64_t active) {
    if (total == 0) return;
    text += fmt::format("  {:<18} {:>10} {:>10}\n", name, FormatCount(static_cast<double>(total)),
                        FormatCount(static_cast<double>(active)));
  };
  line(m.config.tie_embeddings ? "embedding = head" : "embedding", n.embedding, active_embedding);
  line("attention", n.attention, n.attention);
  line("norms", n.norms, n.norms);
  line("router", n.router, n.router);
  line("experts", n.experts, active_experts);
  line("shared experts", n.shared_experts, n.shared_experts);
  line("dense FFN", n.dense_ffn, n.dense_ffn);
  line("head", n.head, n.head);
  line("all", n.total, n.active);
  return text;
}

std::string MemoryText(const InspectFlags& flags, const Inspection& m) {
  std::string text = fmt::format("\n{:<20}", "memory");
  for (const DType dtype : kDTypes) text += fmt::format(" {:>10}", Name(dtype));
  text += '\n';
  const auto line = [&](const std::string& name, const std::vector<MemoryNeed>& needs, auto&& of) {
    text += fmt::format("  {:<18}", name);
    for (const MemoryNeed& need : needs) text += fmt::format(" {:>10}", FormatBytes(static_cast<double>(of(need))));
    text += '\n';
  };
  text += fmt::format("  to run, {} sequence{} of {} tokens\n", flags.sequences, flags.sequences == 1 ? "" : "s", m.positions);
  line("  weights", m.inference, [](const MemoryNeed& n) { return n.masters + n.packs; });
  line("  KV cache", m.inference, [](const MemoryNeed& n) { return n.kv_cache; });
  line("  activations", m.inference, [](const MemoryNeed& n) { return n.activations; });
  line("  program", m.inference, [](const MemoryNeed& n) { return n.program; });
  line("  all", m.inference, [](const MemoryNeed& n) { return n.total(); });
  text += fmt::format("  to train, micro-batches of {} tokens\n", flags.rows);
  line("  master weights", m.training, [](const MemoryNeed& n) { return n.masters; });
  line("  packed weights", m.training, [](const MemoryNeed& n) { return n.packs; });
  line("  gradients", m.training, [](const MemoryNeed& n) { return n.gradients; });
  line("  moments", m.training, [](const MemoryNeed& n) { return n.moments; });
  line("  activations", m.training, [](const MemoryNeed& n) { return n.activations; });
  line("  program", m.training, [](const MemoryNeed& n) { return n.program; });
  line("  all", m.training, [](const MemoryNeed& n) { return n.total(); });
  return text;
}

std::string Report(const InspectFlags& flags, const Inspection& m) {
  const ModelConfig& c = m.config;
  std::string text = fmt::format("{}: {}, {} layers, width {}\n", flags.model, m.architecture, c.layers.size(), c.hidden);
  text += fmt::format("  attention        {} heads of {}, {} for keys and values\n", c.num_heads, c.head_width, c.num_kv_heads);
  text += fmt::format("  vocabulary       {}\n  context          {}\n", c.vocab_size, c.context);
  text += LayersText(c.layers);
  if (m.moe_layer != nullptr) text += fmt::format("  routing          {}\n", RoutingText(m.moe_layer->moe.router));
  return text + ParametersText(m) + MemoryText(flags, m);
}

Status Run(const InspectFlags& flags) {
  for (const auto& [flag, value] : {std::pair{"--rows", flags.rows}, {"--sequences", flags.sequences}}) {
    if (value < 1 || value > kMaxCount) return UsageErr(flag, "got {}, expected 1..{}", value, kMaxCount);
  }
  MOE_TRY(CheckJsonTarget(flags.common));
  MOE_TRY(const Inspection inspection, Inspect(flags));
  if (!flags.common.json_on_stdout()) MOE_TRY(WriteStdout(Report(flags, inspection)));
  return WriteJsonResult(flags.common, ToJson(flags, inspection));
}

}  // namespace

int RunInspect(int argc, char** argv) {
  InspectFlags flags;
  CLI::App app(
      "Shows what a model is: its layers and routing, the parameters of which a token uses a part, the memory it takes.",
      "moe inspect");
  app.add_option("--model", flags.model, "Model folder, config.json, or the name of a preset (no weights are read)")
      ->type_name("MODEL")
      ->required();
  app.add_option("--rows", flags.rows, "Tokens of a micro-batch, for the memory of training")->capture_default_str();
  app.add_option("--sequences", flags.sequences, "Sequences at once, for the memory of running it")->capture_default_str();
  app.add_option("--context", flags.context, "Their tokens (default: the model's context)");
  AddCommonFlags(app, flags.common);
  SetExamples(app, {{"moe inspect --model runs/demo", "a model that was trained here"},
                    {"moe inspect --model olmoe-1b-7b --sequences 16", "what a public model would take for 16 users"},
                    {"moe inspect --model config.json --rows 8192 --json -", "any config.json, as JSON"}});
  if (const auto exit_code = ParseFlags(app, argc, argv)) return *exit_code;
  const Status status = Run(flags);
  return status ? 0 : Fail(status.error());
}

}  // namespace moe
