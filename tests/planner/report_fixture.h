#pragma once
// A plan, and a sweep whose times are a prediction's with known errors.

#include <numeric>

#include "moe/planner/report_html.h"
#include "testing/tiny_model.h"

namespace moe::test {

inline Plan PlanOfTiny(const std::string& name = "tiny") {
  ModelConfig config = TinyMoe();
  config.hidden = 512;
  for (LayerSpec& layer : config.layers) {
    layer.moe.router.num_experts = 16, layer.moe.router.top_k = 2, layer.moe.expert_width = 1024;
  }
  return MakePlan(name, config, BuiltInMachine("a100-80g").value(), {.context = 16}).value();
}

// Measured times are `miss` times the plan's; parts in the proportions predicted, all of the step, a tenth of it waited for.
inline SweepReport SweepOfPlan(const Plan& plan, double miss) {
  SweepReport sweep{.context = plan.options.context, .cpu = "Test CPU", .isa = "avx2", .threads = 2, .seconds = 20};
  sweep.routing.kind = SweepRouting::kUniform;
  sweep.subjects = SweepSubjects(plan.config, SweepWeights::kRandom, {.context = plan.options.context});
  for (const LayerSpec& layer : plan.config.layers) {
    sweep.chances.push_back(UniformChances(layer.moe.router.num_experts, layer.moe.router.top_k));
  }
  const double memory = plan.machine.memory_bytes_per_s();
  for (const int64_t batch : plan.Batches()) {
    SweepRow row{.batch = batch,
                 .read_bytes_per_s = memory,
                 .read_min = 0.9 * memory,
                 .read_max = memory,
                 .weights_bytes_per_s = memory,
                 .pace_flop_per_s = plan.machine.pace_flop_per_s,
                 .rounds = 7,
                 .rounds_used = 6};
    for (const SweepSubject& subject : sweep.subjects) {
      StepModel model{.config = subject.config};
      if (subject.config.has_experts()) model.chances = sweep.chances;
      const StepTime time = Predict(model, {.batch = batch, .context = sweep.context}, {plan.machine});
      SweepCell cell{.s_per_step = time.s * miss, .s_min = time.s, .s_max = 2 * time.s, .repeat_error = 0.02, .steps = 7};
      const double all = std::accumulate(time.part_s.begin(), time.part_s.end(), 0.0);
      for (size_t p = 0; p < cell.part_s.size(); ++p) cell.part_s[p] = time.part_s[p] / all * cell.s_per_step;
      cell.wait_s = 0.1 * cell.s_per_step;
      cell.distinct_experts.assign(subject.config.layers.size(), time.distinct_experts);
      cell.cost = {time.bytes, time.flop};
      row.cells.push_back(cell);
    }
    sweep.rows.push_back(row);
  }
  return sweep;
}

}  // namespace moe::test
