#pragma once
// A training recipe: one TOML file that says everything a run depends on, besides the data's bytes. Reading is strict; every
// default is written out into the run's folder.

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/base/result.h"
#include "moe/model/config.h"
#include "moe/tensor/dtype.h"

namespace moe {

// What stands behind the attention of a layer. The twins are dense models of equal active or equal total parameters, built from
// the same expert keys, so that one recipe serves both sides of a comparison.
enum class RecipeFfn : uint8_t { kMoe, kDense, kDenseActive, kDenseTotal };
enum class TokenizerKind : uint8_t { kBytes, kBpe, kFile };

// [model] Of a run that begins with a model's weights, all but `from` and `executor` follow from that model.
struct ModelRecipe {
  std::string from;        // a model folder
  int64_t vocab_size = 0;  // rows of the embedding; default: the tokenizer's tokens, beyond which rows are padding
  int64_t layers = 4, hidden = 256, heads = 4;
  int64_t kv_heads = 0;    // default: heads
  int64_t head_width = 0;  // default: hidden / heads
  int64_t context = 256;   // longest sequence
  RecipeFfn ffn = RecipeFfn::kMoe;
  int64_t experts = 8, top_k = 2, expert_width = 256;
  std::vector<ExpertGroup> expert_groups;           // of experts that differ; instead of expert_width
  std::vector<int64_t> layer_experts, layer_top_k;  // [layers] instead of experts and top_k; 0 of dense layers
  int64_t shared_experts = 0;
  int64_t shared_expert_width = 0;  // default: expert_width
  bool shared_expert_gate = false;
  Executor executor = Executor::kGrouped;
  int64_t ffn_width = 0;              // of dense layers
  std::vector<int64_t> dense_layers;  // layers of an MoE model that are dense
  QkNorm qk_norm = QkNorm::kPerHead;
  bool tie_embeddings = true;
  double rope_theta = 10000;
  double norm_epsilon = 1e-6;
};

// [router] The policy of every MoE layer; its experts and top_k are the model's. A policy's name sets the other keys, and
// top_k, where the recipe does not.
struct RouterRecipe {
  std::string policy;
  RouterConfig config;
};

// [tokenizer]
struct TokenizerRecipe {
  TokenizerKind kind = TokenizerKind::kBpe;
  int64_t vocab_size = 1024;  // of a BPE trained from the data
  std::string file;           // a tokenizer.json, for kind "file"
};

// [data] Paths in a recipe are relative to the recipe's folder; after loading they are absolute.
struct DataRecipe {
  std::vector<std::string> files, validation;
  double validation_share = 0;  // of every file, cut out of the training text; scored where `validation` is empty
};

// [train]
struct TrainRecipe {
  int64_t steps = 0;               // optimizer steps; this
  double minutes = 0;              // or this: a few calibration steps fix `steps`
  int64_t batch_tokens = 4096;     // per optimizer step, a multiple of the context
  int64_t micro_batch_tokens = 0;  // per forward and backward pass, divides batch_tokens; default: batch_tokens
  int64_t context = 0;             // window length; default: model.context
  double lr = 3e-3;
  double min_lr = -1;    // at the last step; default: lr / 10
  double warmup = 0.02;  // steps; below 1: share of all steps
  double weight_decay = 0.1, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double clip = 1;  // global gradient norm; 0: never
  // Experts that no token chose in a step stay as they are: moments do not shrink, weights neither decay nor move.
  bool skip_idle_experts = false;
  int64_t seed = 1;
  DType dtype = DType::kF32;
  int64_t eval_every = 250;        // steps; 0: only at the end
  int64_t eval_tokens = 0;         // of the validation text, spread over it; 0: all
  int64_t checkpoint_every = 250;  // steps; 0: only at the end
};

// [[variant]] What `moe compare` trains beside the recipe: the same recipe but for `sets`, written as for --set.
struct RecipeVariant {
  std::string name;  // also of its folder: letters, digits, . _ + -
  std::string axis;  // the question that it is one answer to
  std::vector<std::string> sets;
  std::string where;       // "bakeoff.toml:31 variant switch"
  bool from_flag = false;  // errors are wrong usage
};
bool IsVariantName(std::string_view name);

struct Recipe {
  ModelRecipe model;
  RouterRecipe router;
  TokenizerRecipe tokenizer;
  DataRecipe data;
  TrainRecipe train;
  std::vector<RecipeVariant> variants;  // no part of the run; ToToml and FirstDifference pass them over
  // Paths that the recipe's text gave relative to its folder, and how: "demo.toml:20 data.files says \"../a.txt\", which is
  // relative to the recipe's folder". For errors only.
  std::map<std::string, std::string> relative_paths;
};

// What a command line changes: `sets` are "key=value" with dotted keys, the value as in TOML (a bare word is a string; an empty
// value takes the recipe's key away); the lists replace the recipe's where not empty (paths relative to the working folder).
// Data without validation takes the recipe's validation away too, and sets validation_share to kCutShare, unless `sets` name
// them; but of a run that is resumed, what was cut stays cut, and its validation stays unless another is named.
inline constexpr double kCutShare = 0.03;
struct RecipeOverrides {
  std::vector<std::string> sets;
  std::vector<std::string> data, validation;
  double minutes = 0;  // > 0: replaces steps and minutes
  std::string dtype;
  const DataRecipe* begun = nullptr;       // of the run that is resumed
  const RecipeVariant* variant = nullptr;  // whose sets come after `sets`
  bool own_text = false;                   // a run's own recipe.toml, which has every key: model.from is not looked at
};

// Errors are one line: file (and line), key, what was got, what was expected; an unknown key comes with the nearest known one,
// the bare name of a recipe with the file that it may mean.
Result<Recipe> LoadRecipe(const std::string& path, const RecipeOverrides& overrides = {});
// `where` names the text in errors; `folder` is what its paths are relative to.
Result<Recipe> ParseRecipe(std::string_view text, const std::string& where, const std::string& folder,
                           const RecipeOverrides& overrides = {});

// Every key and its value, as comments where the value follows from other keys. ParseRecipe gives the same recipe back.
std::string ToToml(const Recipe& recipe);

// The model a recipe describes. `where` names the recipe in errors.
Result<ModelConfig> MakeModelConfig(const Recipe& recipe, int64_t vocab_size, int32_t bos_id, int32_t eos_id,
                                    const std::string& where);

// The first key that two recipes differ in among those a run's numbers depend on; empty: none. Left out: the paths of
// [data] (contents are compared elsewhere), eval_every, eval_tokens, checkpoint_every; train.steps where either was calibrated.
std::string FirstDifference(const Recipe& a, const Recipe& b);
// The value of a key as ToToml writes it.
std::string ValueOf(const Recipe& recipe, std::string_view wanted);

}  // namespace moe
