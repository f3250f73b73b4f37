#include "moe/planner/compare_summary.h"

#include <nlohmann/json.hpp>

#include "moe/files/atomic_file.h"
#include "moe/files/json.h"
#include "moe/train/run_folder.h"

namespace moe {

using nlohmann::json;

Status WriteRunSummary(const std::string& folder, const RunSummaryFile& summary) {
  json layers = json::array();
  for (const ExpertLoad& load : summary.held_out.layers) {
    layers.push_back({{"tokens_per_expert", load.tokens_per_expert},
                      {"max_violation", load.max_violation},
                      {"drop_rate", load.drop_rate},
                      {"entropy", load.entropy},
                      {"dead_experts", load.dead_experts}});
  }
  const json file = {{"seed", summary.seed},
                     {"failed", summary.failed},
                     {"kernels", summary.kernels},
                     {"threads", summary.threads},
                     {"data_digest", summary.data_digest},
                     {"held_out_digest", summary.held_out_digest},
                     {"weights_digest", summary.weights_digest},
                     {"models_kept", summary.models_kept},
                     {"parameters_total", summary.parameters_total},
                     {"parameters_active", summary.parameters_active},
                     {"held_out",
                      {{"loss_sum", summary.held_out.loss_sum},
                       {"tokens", summary.held_out.num_tokens},
                       {"bytes", summary.held_out.num_bytes},
                       {"layers", layers}}},
                     {"step_s_in_turns", {{"base", summary.times.base_s}, {"own", summary.times.own_s}}}};
  return WriteFileAtomically(PathIn(folder, kSummaryName), file.dump(1) + "\n");
}

Result<RunSummaryFile> ReadRunSummary(const std::string& folder) {
  const std::string path = PathIn(folder, kSummaryName);
  MOE_TRY(const json file, LoadJson(path));
  RunSummaryFile out;
  try {
    out.seed = file.at("seed").get<int64_t>();
    out.failed = file.at("failed").get<std::string>();
    out.kernels = file.at("kernels").get<std::string>();
    out.threads = file.at("threads").get<int>();
    out.data_digest = file.at("data_digest").get<std::string>();
    out.held_out_digest = file.at("held_out_digest").get<std::string>();
    out.weights_digest = file.value("weights_digest", "");
    out.models_kept = file.at("models_kept").get<bool>();
    out.parameters_total = file.at("parameters_total").get<int64_t>();
    out.parameters_active = file.at("parameters_active").get<int64_t>();
    const json& held_out = file.at("held_out");
    out.held_out.loss_sum = held_out.at("loss_sum").get<double>();
    out.held_out.num_tokens = held_out.at("tokens").get<int64_t>();
    out.held_out.num_bytes = held_out.at("bytes").get<int64_t>();
    for (const json& layer : held_out.at("layers")) {
      out.held_out.layers.push_back({.tokens_per_expert = layer.at("tokens_per_expert").get<std::vector<int64_t>>(),
                                     .max_violation = layer.at("max_violation").get<double>(),
                                     .drop_rate = layer.at("drop_rate").get<double>(),
                                     .entropy = layer.at("entropy").get<double>(),
                                     .dead_experts = layer.at("dead_experts").get<int64_t>()});
    }
    out.times.base_s = file.at("step_s_in_turns").at("base").get<std::vector<double>>();
    out.times.own_s = file.at("step_s_in_turns").at("own").get<std::vector<double>>();
  } catch (const json::exception& error) {
    return Err(path, "got something else than a run's summary ({}); remove the file and the run is finished anew",
               error.what());
  }
  return out;
}

Status CheckWeights(const std::string& from, const std::string& digest, const std::string& run_folder, WeightsSeen& seen) {
  if (digest.empty()) return {};
  const auto [it, is_new] = seen.try_emplace(from, run_folder, digest);
  if (it->second.second == digest) return {};
  return Err(from, "got other weights ({}) for {}, expected those that {} began with ({}); --out names another folder for them",
             digest, run_folder, it->second.first, it->second.second);
}

Status CheckRunFolder(const std::string& folder, const Recipe& wanted) {
  if (!Holds(folder, "recipe.toml")) return {};
  const std::string path = PathIn(folder, "recipe.toml");
  MOE_TRY(const std::string text, ReadFile(path));
  MOE_TRY(const Recipe there, ParseRecipe(text, path, folder, {.own_text = true}));
  const std::string key = FirstDifference(wanted, there);
  if (key.empty()) return {};
  return Err(fmt::format("{} {}", folder, key),
             "got {}, expected {}: the run there was begun with it; --out names another folder", ValueOf(wanted, key),
             ValueOf(there, key));
}

}  // namespace moe
