#include "moe/costs/machine.h"

#include <algorithm>

#include "moe/base/check.h"

namespace moe {
namespace {

constexpr DType kFormats[] = {DType::kF32, DType::kBf16};

template <class Costs>
auto Find(Costs& costs, DType format) {
  return std::find_if(costs.begin(), costs.end(), [&](const auto& c) { return c.format == format; });
}

auto Find(const std::vector<ProductCost>& products, DType format, ProductKind kind) {
  return std::find_if(products.begin(), products.end(),
                      [&](const ProductCost& c) { return c.format == format && c.kind == kind; });
}

auto FindStream(const std::vector<StreamCost>& streams, DType format, bool gradients) {
  return std::find_if(streams.begin(), streams.end(),
                      [&](const StreamCost& c) { return c.format == format && c.gradients == gradients; });
}

// What a value of each op brings through memory, float32 unless the op is about the format; and its name in files.
struct RowOpFacts {
  std::string_view name;
  double bytes;
};
constexpr RowOpFacts kRowOps[kNumRowOps] = {
    {"norm", 8},
    {"rope", 8},
    {"round", 6},
    {"add", 12},
    {"copy", 8},
    {"copy_alone", 8},
    {"combine", 4},
    {"norm_backward", 12},
    {"swiglu_backward", 10},
    {"combine_backward", 8},
    {"cross_entropy", 8},
    {"sum_squares", 4},
};

}  // namespace

std::string_view Name(RowOp op) {
  return kRowOps[static_cast<size_t>(op)].name;
}

double BytesPerValue(RowOp op) {
  return kRowOps[static_cast<size_t>(op)].bytes;
}

double ProductCost::PanelSeconds(double rows, double inputs) const {
  constexpr double kWhole = 1024;
  const double once = panel_s.empty() ? 0 : panel_s.TimeAt(rows);
  return inputs * step_s.TimeAt(rows) + std::max(1.0, inputs / kWhole) * once;
}

const ProductCost& MachineProfile::product(DType format, ProductKind kind) const {
  const auto it = Find(products, format, kind);
  MOE_CHECK(it != products.end(), "no product {} of {}", static_cast<int>(kind), Name(format));
  return *it;
}

const StreamCost& MachineProfile::stream(DType format, ProductKind kind) const {
  const auto it = FindStream(streams, format, kind == ProductKind::kWeightGrad);
  MOE_CHECK(it != streams.end(), "no stream of {}", Name(format));
  return *it;
}

const AttentionCost& MachineProfile::attention_of(DType format) const {
  const auto it = Find(attention, format);
  MOE_CHECK(it != attention.end(), "no attention of {}", Name(format));
  return *it;
}

void Complete(MachineProfile& m) {
  MOE_CHECK(!m.weights_bytes_per_s.empty() && m.peak_f32 > 0, "a machine without bandwidth or arithmetic");
  if (m.peak_bf16 <= 0) m.peak_bf16 = m.peak_f32;
  if (m.read_bytes_per_s <= 0) m.read_bytes_per_s = m.memory_bytes_per_s();
  if (m.rmw_bytes_per_s <= 0) m.rmw_bytes_per_s = m.memory_bytes_per_s();
  if (m.adamw_bytes_per_s <= 0) m.adamw_bytes_per_s = m.rmw_bytes_per_s;
  if (m.adamw_wide_bytes_per_s <= 0) m.adamw_wide_bytes_per_s = m.adamw_bytes_per_s;
  for (const DType format : kFormats) {
    const double flop_s = 1 / m.peak_flop_per_s(format);
    for (int kind = 0; kind < kNumProductKinds; ++kind) {
      if (Find(m.products, format, static_cast<ProductKind>(kind)) != m.products.end()) continue;
      constexpr double kPanelFlop = 2.0 * 32;  // of one row and input
      m.products.push_back(
          {.format = format, .kind = static_cast<ProductKind>(kind), .step_s = {{{1, kPanelFlop * flop_s}}}, .panel_s = {}});
    }
    for (const bool gradients : {false, true}) {
      if (FindStream(m.streams, format, gradients) != m.streams.end()) continue;
      m.streams.push_back({.format = format, .gradients = gradients});
    }
    if (Find(m.attention, format) == m.attention.end()) {
      m.attention.push_back({.format = format, .pair_s = {{{1, 4 * flop_s}}}, .backward_pair_s = {{{1, 10 * flop_s}}}});
    }
  }
  for (int op = 0; op < kNumRowOps; ++op) {
    double& s = m.row_op_s[static_cast<size_t>(op)];
    if (s <= 0) s = BytesPerValue(static_cast<RowOp>(op)) / m.weights_bytes_per_s.points.front().y;
  }
}

}  // namespace moe
