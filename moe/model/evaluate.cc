#include "moe/model/evaluate.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <optional>

namespace moe {
namespace {

struct Window {
  size_t document;
  std::span<const int32_t> tokens;
};

struct RouterSums {
  std::vector<int64_t> tokens_per_expert;
  int64_t num_tokens = 0, num_dropped = 0;
  double gate_sum = 0, largest_logit = 0;
  double entropy_units = 0;  // kEntropyUnit each: a whole number, so that sums are exact however tokens are grouped
};

void Add(const LayerStats& stats, RouterSums& sums) {
  sums.tokens_per_expert.resize(stats.tokens_per_expert.size());
  for (size_t e = 0; e < stats.tokens_per_expert.size(); ++e) sums.tokens_per_expert[e] += stats.tokens_per_expert[e];
  sums.num_tokens += stats.num_tokens;
  sums.num_dropped += stats.num_dropped;
  sums.gate_sum += stats.gate_sum;
  sums.largest_logit = std::max(sums.largest_logit, stats.largest_logit);
  sums.entropy_units += std::round(stats.entropy * static_cast<double>(stats.num_tokens) / kEntropyUnit);
}

ExpertLoad ToLoad(RouterSums sums) {
  ExpertLoad load{.tokens_per_expert = std::move(sums.tokens_per_expert)};
  load.max_violation = MaxViolation(load.tokens_per_expert);
  load.coefficient_of_variation = CoefficientOfVariation(load.tokens_per_expert);
  load.dead_experts = DeadExperts(load.tokens_per_expert);
  const int64_t slots = Assignments(load.tokens_per_expert);
  load.gate_mean = slots == 0 ? 0 : sums.gate_sum / static_cast<double>(slots);
  load.largest_logit = sums.largest_logit;
  load.drop_rate = DropRate(sums.num_dropped, load.tokens_per_expert);
  if (sums.num_tokens > 0) load.entropy = sums.entropy_units * kEntropyUnit / static_cast<double>(sums.num_tokens);
  return load;
}

// A step's rows: the windows one after another, each a sequence of its own.
struct EvaluationStep {
  std::vector<RowInfo> rows;
  std::vector<int32_t> targets;
  std::vector<float> loss;

  void Fill(std::span<const Window> windows, int32_t bos_id) {
    rows.clear(), targets.clear();
    for (size_t w = 0; w < windows.size(); ++w) {
      int32_t input = bos_id;
      for (size_t i = 0; i < windows[w].tokens.size(); ++i) {
        rows.push_back({.sequence = static_cast<int32_t>(w), .position = static_cast<int32_t>(i), .token_id = input});
        targets.push_back(input = windows[w].tokens[i]);
      }
    }
    loss.assign(rows.size(), 0);
  }
};

// Where each layer's router leaves its logits.
struct RouterLogits {
  std::vector<Tensor> owned;           // [L] [rows,E]
  std::vector<MatView<float>> layers;  // of the step's rows

  RouterLogits(const ModelConfig& config, int64_t rows) {
    for (const LayerSpec& layer : config.layers) {
      owned.push_back(layer.ffn == FfnKind::kMoe ? Tensor({rows, layer.moe.router.num_experts}) : Tensor());
    }
  }
  std::span<const MatView<float>> Of(int64_t rows) {
    layers.clear();
    for (Tensor& tensor : owned) layers.push_back(tensor.empty() ? MatView<float>() : tensor.mat().Rows(0, rows));
    return layers;
  }
};

Result<std::vector<Window>> CutWindows(std::span<const Document> documents, int64_t context, int64_t vocab_size) {
  std::vector<Window> windows;
  for (size_t d = 0; d < documents.size(); ++d) {
    const auto tokens = documents[d].tokens;
    const auto bad = std::find_if(tokens.begin(), tokens.end(), [&](int32_t t) { return t < 0 || t >= vocab_size; });
    if (bad != tokens.end()) return Err("evaluation", "got token {}, expected 0..{}", *bad, vocab_size - 1);
    for (size_t begin = 0; begin < tokens.size(); begin += static_cast<size_t>(context)) {
      windows.push_back({d, tokens.subspan(begin, std::min(static_cast<size_t>(context), tokens.size() - begin))});
    }
  }
  if (windows.empty()) return Err("evaluation", "got no text, expected at least one token");
  return windows;
}

}  // namespace

double BitsPerByte(double loss_sum, int64_t num_bytes) {
  return num_bytes == 0 ? 0 : loss_sum / std::numbers::ln2 / static_cast<double>(num_bytes);
}

nlohmann::json ToJson(const ExpertLoad& load) {
  return {{"tokens_per_expert", load.tokens_per_expert},
          {"max_violation", load.max_violation},
          {"coefficient_of_variation", load.coefficient_of_variation},
          {"drop_rate", load.drop_rate},
          {"entropy", load.entropy},
          {"dead_experts", load.dead_experts},
          {"gate_mean", load.gate_mean},
          {"largest_logit", load.largest_logit}};
}

double Evaluation::loss() const {
  return num_tokens == 0 ? 0 : loss_sum / static_cast<double>(num_tokens);
}
double Evaluation::bits_per_byte() const {
  return BitsPerByte(loss_sum, num_bytes);
}
double Evaluation::perplexity() const {
  return std::exp(loss());
}

Result<Evaluation> Evaluate(const Model& model, std::span<const Document> documents, const EvaluateOptions& options,
                            ExecContext& ctx) {
  const ModelConfig& config = model.config();
  const int64_t context = options.context == 0 ? config.context : options.context;
  const int32_t bos_id = options.bos_id >= 0 ? options.bos_id : config.bos_id;
  if (context < 1 || context > config.context) {
    return Err("evaluation", "got context {}, expected 1..{}", context, config.context);
  }
  if (bos_id < 0 || bos_id >= config.vocab_size) {
    return Err("evaluation", "got BOS token {}, expected 0..{}", bos_id, config.vocab_size - 1);
  }
  if (options.batch < 0) return Err("evaluation", "got batch {}, expected at least 1", options.batch);
  const int64_t batch = options.batch > 0 ? options.batch : std::max<int64_t>(1, kEvaluateRows / context);
  MOE_TRY(const auto windows, CutWindows(documents, context, config.vocab_size));

  Evaluation result;
  result.document_loss_sum.assign(documents.size(), 0);
  for (const Document& document : documents) {
    result.num_tokens += static_cast<int64_t>(document.tokens.size());
    result.num_bytes += document.num_bytes;
  }
  std::vector<RouterSums> sums(config.layers.size());
  EvaluationStep step;
  StepStats stats;
  std::optional<RouterLogits> logits;
  if (options.on_router_logits) logits.emplace(config, std::min(result.num_tokens, batch * context));
  int64_t tokens_done = 0;
  double loss_sum = 0;
  for (size_t begin = 0; begin < windows.size(); begin += static_cast<size_t>(batch)) {
    const auto some = std::span(windows).subspan(begin, std::min(static_cast<size_t>(batch), windows.size() - begin));
    step.Fill(some, bos_id);
    ctx.arena.Reset();
    stats.Clear();
    StepBatch rows{.rows = step.rows};
    if (logits) rows.router_logits = logits->Of(std::ssize(step.rows));
    MOE_TRY(model.Evaluate(rows, step.targets, &stats, step.loss, ctx));
    size_t row = 0;
    for (const Window& window : some) {
      double& document_loss = result.document_loss_sum[window.document];
      for (size_t i = 0; i < window.tokens.size(); ++i, ++row) {
        document_loss += step.loss[row];
        loss_sum += step.loss[row];
      }
    }
    if (!std::isfinite(loss_sum)) {
      return Err("evaluation", "got loss {} near token {}, expected a finite number; the weights may be damaged", loss_sum,
                 tokens_done);
    }
    if (logits) MOE_TRY(options.on_router_logits(step.rows, rows.router_logits));
    for (size_t l = 0; l < std::min(sums.size(), stats.layers.size()); ++l) Add(stats.layers[l], sums[l]);
    tokens_done += static_cast<int64_t>(step.rows.size());
    if (options.on_step && !options.on_step(tokens_done, result.num_tokens, loss_sum)) {
      return Err("evaluation", "got interrupted after {} tokens, expected to read {}", tokens_done, result.num_tokens);
    }
  }
  for (const double document_loss : result.document_loss_sum) result.loss_sum += document_loss;
  for (RouterSums& layer : sums) result.layers.push_back(ToLoad(std::move(layer)));
  return result;
}

}  // namespace moe
