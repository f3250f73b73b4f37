#include "moe/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "moe/base/check.h"
#include "moe/base/clock.h"
#include "moe/base/rng.h"
#include "moe/model/evaluate.h"

namespace moe {
namespace {

// Adds the seconds of its life to one of the parts.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds), start_(NowSeconds()) {}
  ~Stopwatch() { seconds_ += NowSeconds() - start_; }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& seconds_;
  double start_;
};

}  // namespace

std::string RuinedWeights(const ParameterStore& store) {
  if (const std::string name = FirstNonFiniteValue(store); !name.empty()) return fmt::format("{} is not finite", name);
  constexpr double kLarge = 1e3;  // nothing that trains has weights like these
  double largest = kLarge;
  std::string grown;
  for (const Parameter& parameter : store.all()) {
    if (!parameter.name.starts_with("layers.")) continue;
    double squares = 0;
    for (const float x : parameter.value.span()) squares += static_cast<double>(x) * x;
    const double rms = std::sqrt(squares / static_cast<double>(std::max<int64_t>(1, parameter.value.size())));
    if (rms > largest) largest = rms, grown = parameter.name;
  }
  return grown.empty() ? "" : fmt::format("the weights of {} have grown to {:.1e}", grown, largest);
}

Trainer::Trainer(const Recipe& recipe, const Corpus& corpus, std::vector<int32_t> token_bytes, Model& model)
    : recipe_(recipe.train),
      token_bytes_(std::move(token_bytes)),
      model_(model),
      packs_(model.Packs()),
      stream_(corpus, recipe.train.context, model.config().bos_id, static_cast<uint64_t>(recipe.train.seed)) {
  MOE_CHECK(std::ssize(token_bytes_) <= model.config().vocab_size, "{} token lengths, vocabulary {}", token_bytes_.size(),
            model.config().vocab_size);
  token_bytes_.resize(static_cast<size_t>(model.config().vocab_size));  // padding has no bytes
  optimizer_ = {.beta1 = recipe_.beta1,
                .beta2 = recipe_.beta2,
                .epsilon = recipe_.epsilon,
                .weight_decay = recipe_.weight_decay,
                .clip = recipe_.clip};
  optimizer_.Reset(model.parameters());
  size_t i = 0;
  for (Parameter& parameter : model.parameters().all()) {
    optimized_.push_back({.parameter = &parameter, .packed = packs_[i++].packed});
  }
  set_steps(recipe_.steps);
}

void Trainer::set_steps(int64_t steps) {
  schedule_ = {.lr = recipe_.lr, .min_lr = recipe_.min_lr, .warmup_steps = WarmupSteps(recipe_.warmup, steps), .steps = steps};
}

void Trainer::Restart(ExecContext& ctx) {
  model_.Initialize(static_cast<uint64_t>(recipe_.seed), ctx);
  model_.SetCapacityFactors(std::vector<double>(model_.config().layers.size(), -1.0));
  optimizer_.Reset(model_.parameters());
  seconds = 0;
}

tl::unexpected<Error> Trainer::Diverged(int64_t step, const std::string& what) const {
  std::string advice =
      fmt::format("try a lower train.lr (now {}) or a longer train.warmup (now {})", recipe_.lr, recipe_.warmup);
  if (recipe_.clip == 0) advice += ", or train.clip = 1 (now off)";
  if (recipe_.dtype != DType::kF32) advice += fmt::format(", or train.dtype = \"f32\" (now {})", Name(recipe_.dtype));
  return Err(fmt::format("step {}", step), "{}; {}", what, advice);
}

// Says where it comes from, as far as the numbers tell.
tl::unexpected<Error> Trainer::NotFinite(const std::string& what, double value) const {
  std::string message = fmt::format("{} is {}, expected a finite number", what,
                                    std::isnan(value) ? "not a number" : fmt::format("{}", value));  // a NaN has a sign
  const ParameterStore& store = model_.parameters();
  if (const std::string ruined = RuinedWeights(store); !ruined.empty()) {
    message += "; " + ruined;
  } else if (const std::string name = FirstNonFiniteGrad(store); !name.empty()) {
    message += "; first in the gradient of " + name;
  }
  return Diverged(steps_done() + 1, message);
}

uint64_t Trainer::KeyOf(int64_t micro_batch) const {
  const auto seed = static_cast<uint64_t>(recipe_.seed), step = static_cast<uint64_t>(steps_done());
  return MixBits(seed ^ MixBits(step ^ MixBits(static_cast<uint64_t>(micro_batch))));
}

// Sums over the step's micro-batches into the gradients and stats_.
Status Trainer::Gradients(StepMetrics& metrics, ExecContext& ctx) {
  const int64_t T = recipe_.micro_batch_tokens, count = recipe_.batch_tokens / T;
  const auto grad_scale = static_cast<float>(1.0 / static_cast<double>(recipe_.batch_tokens));
  const auto aux_scale = static_cast<float>(1.0 / static_cast<double>(count));
  int64_t num_bytes = 0;
  stats_.Clear();
  if (!gradients_clear_) {  // else the last step has left them at 0
    Stopwatch watch(metrics.parts.optimizer);
    model_.parameters().ZeroGradients();
  }
  gradients_clear_ = false;
  for (int64_t i = 0; i < count; ++i) {
    {
      Stopwatch watch(metrics.parts.data);
      stream_.Read(steps_done() * recipe_.batch_tokens + i * T, T, batch_);
      for (const int32_t token : batch_.targets) num_bytes += token_bytes_[static_cast<size_t>(token)];
    }
    Stopwatch watch(metrics.parts.model);
    ctx.arena.Reset();
    const Status status =
        model_.ForwardBackward({.rows = batch_.rows, .key = KeyOf(i)}, batch_.targets, grad_scale, aux_scale, &stats_, ctx);
    if (!status) return Diverged(steps_done() + 1, status.error().where + ": " + status.error().what);
  }
  ctx.arena.Reset();
  metrics.step_tokens = stats_.num_targets;
  metrics.loss = stats_.loss_sum / static_cast<double>(stats_.num_targets);
  metrics.bits_per_byte = BitsPerByte(stats_.loss_sum, num_bytes);
  metrics.layers = stats_.layers;
  return {};
}

Status Trainer::Step(StepMetrics& metrics, ExecContext& ctx) {
  metrics.parts = {};
  metrics.steps = schedule_.steps;
  metrics.lr = LearningRate(schedule_, steps_done());
  MOE_TRY(Gradients(metrics, ctx));
  ParameterStore& store = model_.parameters();
  if (!std::isfinite(metrics.loss)) return NotFinite("the loss", metrics.loss);
  {
    Stopwatch watch(metrics.parts.optimizer);
    metrics.grad_norm = GlobalGradNorm(store, ctx);
    if (!std::isfinite(metrics.grad_norm)) return NotFinite("the gradient's norm", metrics.grad_norm);
    for (size_t i = 0; recipe_.skip_idle_experts && i < packs_.size(); ++i) {
      if (packs_[i].experts_of < 0) continue;
      const std::span<const int64_t> all = stats_.layers[static_cast<size_t>(packs_[i].experts_of)].tokens_per_expert;
      optimized_[i].tokens_per_expert =
          all.subspan(static_cast<size_t>(packs_[i].first_expert), static_cast<size_t>(optimized_[i].parameter->experts));
    }
    ApplyAdamw(optimizer_, optimized_, metrics.lr, metrics.grad_norm, ctx);
    model_.UpdateRouters(stats_);
    gradients_clear_ = true;
  }
  seconds += metrics.parts.total();
  metrics.seconds = seconds;
  metrics.step = steps_done();
  metrics.tokens = metrics.step * recipe_.batch_tokens;
  return {};
}

}  // namespace moe
