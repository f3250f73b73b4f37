#include "moe/costs/machine_json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "moe/tensor/packed_weight.h"

namespace moe {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kProductNames[kNumProductKinds] = {"linear", "gate_up", "down", "weight_grad"};
constexpr double kInputs = 1024;             // of the product whose rate is told
constexpr double kInputFlop = 2.0 * kPanel;  // of one row and input of a panel

// Rows and bytes: 64, not 64.0.
Json Size(double value) {
  return value == std::floor(value) && value < 1e18 ? Json(static_cast<int64_t>(value)) : Json(value);
}

Json JsonOf(const Curve& curve, const char* x, const char* y) {
  Json list = Json::array();
  for (const CurvePoint& p : curve.points) list.push_back({{x, Size(p.x)}, {y, p.y}});
  return list;
}

Json JsonOf(const RoutingCost& cost) {
  return {{"call_s", cost.call_s}, {"token_s", cost.token_s}, {"expert_s", cost.expert_s}, {"slot_s", cost.slot_s}};
}

// An entry for every number of rows in either curve.
void AppendGamma(const ProductCost& cost, Json& list) {
  const auto &steps = cost.step_s.points, &panels = cost.panel_s.points;
  for (size_t s = 0, p = 0; s < steps.size() || p < panels.size();) {
    const double rows = std::min(s < steps.size() ? steps[s].x : INFINITY, p < panels.size() ? panels[p].x : INFINITY);
    Json entry = {{"dtype", Name(cost.format)},
                  {"product", Name(cost.kind)},
                  {"pass", IsBackward(cost.kind) ? "backward" : "forward"},
                  {"rows", Size(rows)},
                  {"flop_per_s", FlopPerS(cost, rows)}};
    if (s < steps.size() && steps[s].x == rows) entry["step_s"] = steps[s++].y;
    if (p < panels.size() && panels[p].x == rows) entry["panel_s"] = panels[p++].y;
    list.push_back(std::move(entry));
  }
}

}  // namespace

std::string_view Name(ProductKind kind) {
  return kProductNames[static_cast<size_t>(kind)];
}

bool IsBackward(ProductKind kind) {
  return kind == ProductKind::kWeightGrad;
}

double StepSeconds(double rows, double flop_per_s) {
  return kInputFlop * rows / flop_per_s;
}

double FlopPerS(const ProductCost& cost, double rows) {
  const double panel = cost.panel_s.empty() ? 0 : cost.panel_s.TimeAt(rows);
  return kInputFlop * kInputs * rows / (kInputs * cost.step_s.TimeAt(rows) + panel);
}

Json JsonOf(const MachineProfile& m) {
  Json j = {{"name", m.name},
            {"cpu", m.cpu},
            {"isa", m.isa},
            {"version", m.version},
            {"date", m.date},
            {"source", m.source},
            {"revision", m.revision},
            {"threads", m.threads},
            {"l2_bytes", m.l2_bytes},
            {"l3_bytes", m.l3_bytes},
            {"memory_bytes", m.memory_bytes},
            {"read_bytes_per_s", m.read_bytes_per_s},
            {"rmw_bytes_per_s", m.rmw_bytes_per_s},
            {"adamw_bytes_per_s", m.adamw_bytes_per_s},
            {"adamw_wide_bytes_per_s", m.adamw_wide_bytes_per_s},
            {"weights_bytes_per_s", m.memory_bytes_per_s()},
            {"weights_by_working_set", JsonOf(m.weights_bytes_per_s, "bytes", "bytes_per_s")},
            {"peak_flop_per_s", {{"f32", m.peak_f32}, {"bf16", m.peak_bf16}, {"int8", m.peak_int8}}},
            {"pace_flop_per_s", m.pace_flop_per_s},
            {"handover_s", m.handover_s},
            {"barrier_s", m.barrier_s},
            {"step_s", m.step_s},
            {"routing", JsonOf(m.routing)},
            {"routing_backward", JsonOf(m.routing_backward)}};
  for (const char* key : {"gamma", "streams", "attention"}) j[key] = Json::array();
  for (const ProductCost& c : m.products) AppendGamma(c, j["gamma"]);
  for (const StreamCost& c : m.streams) {
    j["streams"].push_back({{"dtype", Name(c.format)},
                            {"of", c.gradients ? "gradients" : "weights"},
                            {"efficiency", c.efficiency},
                            {"overlap", c.overlap},
                            {"matrix_s", c.matrix_s},
                            {"list_s", c.list_s}});
  }
  for (const AttentionCost& c : m.attention) {
    j["attention"].push_back({{"dtype", Name(c.format)},
                              {"pair_s", JsonOf(c.pair_s, "rows", "s")},
                              {"backward_pair_s", JsonOf(c.backward_pair_s, "rows", "s")},
                              {"row_s", c.row_s},
                              {"efficiency", c.efficiency},
                              {"overlap", c.overlap}});
  }
  if (!m.switches.interleave.empty()) j["switches"]["interleave"] = JsonOf(m.switches.interleave, "panels", "speedup");
  if (!m.switches.stream.empty()) j["switches"]["stream"] = JsonOf(m.switches.stream, "bytes", "speedup");
  for (int op = 0; op < kNumRowOps; ++op) j["row_ops"][Name(static_cast<RowOp>(op))] = m.row_op_s[static_cast<size_t>(op)];
  return j;
}

}  // namespace moe
