#include "moe/planner/calibrate_step.h"

#include <algorithm>

#include "moe/base/check.h"
#include "moe/base/clock.h"
#include "moe/model/kv_cache.h"
#include "moe/model/model.h"
#include "moe/planner/predict.h"
#include "moe/planner/probe.h"

namespace moe {
namespace {

constexpr int64_t kContext = 8;

ModelConfig TinyConfig() {
  return {.vocab_size = 64,
          .hidden = 64,
          .num_heads = 1,
          .num_kv_heads = 1,
          .head_width = 64,
          .context = kContext + 1,
          .layers = {{.ffn = FfnKind::kDense, .ffn_width = 64}}};
}

}  // namespace

struct StepCalibration::TinyModel {
  ModelConfig config = TinyConfig();
  Model model{config, DType::kBf16, /*training=*/false};
  KvCache cache = KvCache::Make(config, 1, kContext + 1);
  RowInfo row{.position = kContext, .token_id = 1};
};

StepCalibration::StepCalibration(ExecContext& ctx) : tiny_(std::make_unique<TinyModel>()), ctx_(ctx) {
  tiny_->model.Initialize(1, ctx);
}

StepCalibration::~StepCalibration() = default;

void StepCalibration::Round(double sample_s, const Placement& placement) {
  constexpr int32_t kLogitRow = 0;
  const auto step = [&] {
    ctx_.arena.Reset();
    const auto logits =
        tiny_->model.Forward({.rows = {&tiny_->row, 1}, .logit_rows = {&kLogitRow, 1}, .cache = &tiny_->cache}, nullptr, ctx_);
    MOE_CHECK(logits.has_value(), "a tiny step failed: {}", logits.error().what);
  };
  step();
  const double start = NowSeconds();
  int64_t steps = 0;
  do step(), ++steps;
  while (NowSeconds() - start < sample_s);
  samples_.Add((NowSeconds() - start) / static_cast<double>(steps), placement);
}

void StepCalibration::Fit(MachineProfile& m) const {
  m.step_s = 0;
  const StepTime ops = Predict({.config = tiny_->config}, {Phase::kDecode, 1, kContext}, {m});
  m.step_s = std::max(0.0, Summarize(samples_.Of(m.handover_s)).median - ops.s);
}

}  // namespace moe
