#include <cmath>
#include <nlohmann/json.hpp>

#include "moe/planner/plan_report.h"

namespace moe {
namespace {

using nlohmann::json;

json PartsJson(const PlanCell& cell) {
  json parts;
  for (int part = 0; part < kNumStepParts; ++part) {
    parts[std::string(Name(static_cast<StepPart>(part)))] = cell.time.part_s[static_cast<size_t>(part)];
  }
  parts["imbalance_wait"] = cell.time.imbalance_s;
  parts["sync"] = cell.time.sync_s;
  parts["all_to_all"] = cell.all_to_all_s;
  return parts;
}

json CellJson(const PlanCell& cell) {
  return {{"s_per_step", cell.time.s}, {"tokens_per_s", cell.tokens_per_s},  {"bytes", cell.time.bytes},
          {"flop", cell.time.flop},    {"bound", std::string(cell.bound())}, {"s_by_part", PartsJson(cell)}};
}

json RowJson(const Plan& plan, const PlanRow& row) {
  json model = CellJson(row.model);
  model["regime"] = std::string(Name(row.regime));
  json out = {{"batch", row.batch}, {"memory_bytes", row.memory_bytes}};
  if (plan.moe()) {
    model["distinct_experts"] = row.model.time.distinct_experts;
    if (row.assumed) {
      model["distinct_experts_uniform"] = row.assumed->uniform;
      model["distinct_experts_by_frequency"] = row.assumed->by_frequency;
    }
    model["all_to_all_bytes"] = row.model.all_to_all_bytes;
    out["dense_total"] = CellJson(*row.dense_total), out["dense_active"] = CellJson(*row.dense_active);
    out["speedup_total"] = row.speedup_total(), out["speedup_active"] = row.speedup_active();
  }
  out[plan.moe() ? "moe" : "dense"] = std::move(model);
  return out;
}

json MachineJson(const MachineProfile& m) {
  return {{"name", m.name},
          {"cpu", m.cpu},
          {"isa", m.isa},
          {"threads", m.threads},
          {"date", m.date},
          {"version", m.version},
          {"source", m.source},
          {"memory_bytes", m.memory_bytes},
          {"weights_bytes_per_s", m.memory_bytes_per_s()},
          {"peak_flop_per_s", {{"f32", m.peak_f32}, {"bf16", m.peak_bf16}, {"int8", m.peak_int8}}}};
}

json MemoryJson(const Plan& plan) {
  json weights;
  for (const PlanMemory::OfType& type : plan.memory.types) weights[std::string(type.type.name)] = type.weights;
  return {{"weights", weights},
          {"cache_per_sequence", plan.memory.cache_per_sequence},
          {"training_state", plan.memory.training_state},
          {"program", plan.memory.program}};
}

json RoutingJson(const PlanOptions& options) {
  if (options.measured != nullptr) {
    return {{"kind", "measured"}, {"tokens", options.measured->tokens}, {"files", options.measured->files}};
  }
  const SweepRouting& routing = options.routing;
  if (routing.kind != SweepRouting::kZipf) return "uniform";
  return fmt::format("zipf:{:g}", routing.s);
}

template <class T>
json OrNull(const std::optional<T>& value) {
  return value ? json(*value) : json(nullptr);
}

}  // namespace

json PlanJson(const Plan& plan) {
  const PlanOptions& options = plan.options;
  json out = {{"machine", MachineJson(plan.machine)},
              {"model", plan.name},
              {"phase", std::string(Name(options.phase))},
              {"dtype", std::string(options.dtype.name)},
              {"kv_dtype", std::string(options.kv_type)},
              {"context", options.context},
              {"routing", RoutingJson(options)},
              {"parameters_total", plan.parameters.total},
              {"parameters_active", plan.parameters.active},
              {"experts", plan.experts},
              {"top_k", plan.top_k},
              {"bytes", MemoryJson(plan)},
              {"max_s", OrNull(options.max_s)},
              {"memory_bytes", OrNull(options.memory_bytes)},
              {"gamma_flop_per_s", plan.boundaries.gamma},
              {"b_d", plan.boundaries.b_d},
              {"knee", OrNull(plan.knee)},
              {"best_batch", OrNull(plan.best_batch)},
              {"best", plan.best ? RowJson(plan, *plan.best) : json(nullptr)},
              {"advice", PlanAdvice(plan)},
              {"rows", json::array()}};
  for (const PlanRow& row : plan.rows) out["rows"].push_back(RowJson(plan, row));
  if (options.parallel.ranks > 1) {
    out["parallel"] = {{"ranks", options.parallel.ranks},
                       {"experts_per_rank", (plan.experts + options.parallel.ranks - 1) / options.parallel.ranks},
                       {"link_bytes_per_s", options.parallel.bytes_per_s},
                       {"link_latency_s", options.parallel.latency_s}};
  }
  if (!plan.moe()) return out;
  out["b_sat"] = plan.boundaries.b_sat, out["b_m"] = plan.boundaries.b_m;
  out["plateau"] = plan.plateau.exists(), out["plateau_in_theory"] = plan.boundaries.plateau();
  out["plateau_deviation"] = OrNull(plan.plateau.deviation);
  out["plateau_from"] = plan.plateau.deviation ? json(plan.plateau.from) : json(nullptr);
  out["crossover_total"] = plan.crossover_total, out["crossover_active"] = plan.crossover_active;
  return out;
}

}  // namespace moe
