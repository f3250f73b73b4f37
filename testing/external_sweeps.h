#pragma once
// benches/external/sweeps.json: speeds that others published, of machines and models that planners can be held against.

#include <cstdint>
#include <string>
#include <vector>

#include "moe/model/config.h"

namespace moe::test {

struct ExternalMachine {
  std::string name;                       // of a built-in profile
  int64_t experts_shared_from_batch = 0;  // below it the software reads an expert once for every token that chose it
};

struct ExternalModel {
  std::string name;
  ModelConfig config;
  int64_t window = 0, num_sliding = 0;  // so many layers attend to the last `window` positions only
  // Bytes per value. experts: or the dense FFN.
  double attention_bytes = 0, experts_bytes = 0, router_bytes = 0, head_bytes = 0, kv_bytes = 0;
  int64_t total_parameters = 0, active_parameters = 0;  // published

  // Positions seen, mean over layers, when `positions` are there.
  double MeanPositions(double positions) const;
};

// Decode: one step of `batch` sequences with `context` positions behind each. Prefill: `batch` prompts of `prompt` tokens in
// steps of `tokens_per_step`, after `depth` positions.
struct ExternalRow {
  size_t machine = 0, model = 0;  // indices
  bool decode = true;
  std::string tool;
  int64_t batch = 1, context = 0;
  int64_t prompt = 0, tokens_per_step = 0, depth = 0;
  double s = 0;  // decode: of the step; prefill: of one prompt, all prompts' time / batch
};

struct ExternalSweeps {
  std::vector<ExternalMachine> machines;
  std::vector<ExternalModel> models;
  std::vector<ExternalRow> rows;
};

// Throws what the JSON library throws, which fails the test.
ExternalSweeps LoadExternalSweeps(const std::string& path);

}  // namespace moe::test
