#pragma once
// What the routers of a model did with a text, what its experts like, and what other policies would have done with the same
// logits.

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "moe/files/tokenizer.h"
#include "moe/model/evaluate.h"
#include "moe/planner/probe.h"
#include "moe/planner/token_experts.h"

namespace moe {

struct RouteOptions {
  EvaluateOptions evaluation;  // its on_router_logits is the report's own
  // As ParsePolicy has them; without a preset's name they change the layer's own router, and "model" is that. Empty:
  // DefaultPolicies.
  std::vector<std::string> policies;
  bool training = true;         // policies have the capacity, noise and selection of training, else of evaluation
  uint64_t seed = 1;            // of noise, drops by chance, shuffles
  int64_t least_count = 8;      // slots that a liked token has at least
  int64_t num_likes = 10;       // of each expert, at most
  int64_t timed_layer = -1;     // whose time is taken; -1: the one with the least even load
  double seconds = 4;           // to spend on times, about; 0: none are taken
  std::function<bool()> go_on;  // asked between timed runs; false ends them early. May be empty
};

struct LayerRoutes {
  int64_t layer = 0;
  RouterConfig router;
  ExpertLoad load;
  MutualInformation information;
  std::vector<std::vector<LikedToken>> likes;  // [E]
  std::vector<ExpertGroup> groups;             // of experts that differ, in their order; empty: they are alike
};

// What one policy did with one layer's logits, all steps together.
struct PolicyLayer {
  int64_t layer = 0;
  std::vector<int64_t> tokens_per_expert;  // [E] before dropping
  int64_t slots = 0, dropped = 0;
  int64_t bucket_rows = 0, padded_rows = 0;  // rows if experts' rows were padded to one size, and the empty ones among them
};

struct ExecutorTime {
  Measured s;       // seconds of the layer
  std::string why;  // why there is none; empty: there is
};

struct PolicyRoutes {
  std::string policy;
  std::string why;  // not empty: it does not go together with the model, and this is why
  std::vector<PolicyLayer> layers;
  std::vector<ExecutorTime> times;  // as kExecutors; empty: none were taken

  double slots_per_token(int64_t num_tokens) const;
  double drop_rate() const;          // dropped slots / slots
  double padded_share() const;       // empty rows / rows of buckets
  double mean_violation() const;     // over layers
  double largest_violation() const;  // of the layer where it is largest
};

struct ExecutorName {
  Executor executor;
  const char* name;
};
inline constexpr ExecutorName kExecutors[] = {{Executor::kGrouped, "grouped"},
                                              {Executor::kPadded, "padded"},
                                              {Executor::kLoop, "loop"},
                                              {Executor::kBlockSparse, "block-sparse"}};

struct RouteReport {
  std::string model;  // what it was called; the caller's to set, as is the next
  std::vector<std::string> files;
  Evaluation evaluation;
  int64_t context = 0, step_rows = 0;  // of a window; of a step, which is a batch to policies
  int64_t num_layers = 0;
  bool training = true;
  int64_t least_count = 0;
  std::vector<LayerRoutes> layers;  // with experts only
  std::vector<PolicyRoutes> policies;
  int64_t timed_layer = -1, timed_rows = 0;
  int repetitions = 0;  // of a timed run
  std::string cpu, isa;
  int threads = 0;
  DType format = DType::kF32;
  double seconds = 0;

  const LayerRoutes* Find(int64_t layer) const;
  int64_t most_telling_layer() const;  // whose experts say most of their tokens
};

// Whether a selection bias that was learned beside `own` means something to `policy`: it selects by one, and its scores are of
// the same kind.
inline bool TakesBiasOf(const RouterConfig& own, const RouterConfig& policy) {
  return policy.selects_by_bias() && policy.score == own.score;
}

// The layer's own policy; its capacity dropless, 1, 1.25 and 2; sinkhorn; expert choice; the trainers'.
std::vector<std::string> DefaultPolicies(const RouterConfig& own);
// "model", "model,capacity_factor=1", "top_k=4" (of the layer's own router), "as-switch".
Result<RouterConfig> PolicyOfLayer(const std::string& text, const RouterConfig& own, const std::string& where);

// Runs the model over the text as Evaluate does. Errors: those of Evaluate, a dense model, a policy that is none, or that does
// not go together with a layer (only if options names it). Changes nothing of the model in the end. Resets ctx.arena.
Result<RouteReport> ReportRoutes(Model& model, std::span<const Document> documents, const RouteOptions& options,
                                 ExecContext& ctx);

// As docs/cli.md describes.
nlohmann::json RouteJson(const RouteReport& report, const Tokenizer& tokenizer);

struct RouteTextOptions {
  int columns = 100;
  bool plain = true;            // bars of ASCII
  std::vector<int64_t> layers;  // whose experts are listed; empty: the one that tells most of its tokens
};
std::string RouteText(const RouteReport& report, const Tokenizer& tokenizer, const RouteTextOptions& options);

// One file that needs no network and no JavaScript.
std::string RouteHtml(const RouteReport& report, const Tokenizer& tokenizer);

}  // namespace moe
