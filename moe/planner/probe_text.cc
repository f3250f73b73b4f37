#include "moe/planner/probe_text.h"

#include <algorithm>
#include <cmath>

#include "moe/base/progress.h"
#include "moe/costs/machine_json.h"
#include "moe/planner/bench_optimizer.h"
#include "moe/planner/probe_json.h"
#include "moe/planner/wrapped.h"

namespace moe {
namespace {

constexpr DType kFormats[] = {DType::kF32, DType::kBf16};

std::string CeilingsText(const MachineProbe& probe) {
  std::string out = fmt::format("{}, {}, {} threads. Median of {} rounds, and (least to most).\n\n{:<20}", probe.cpu, probe.isa,
                                probe.all().threads, probe.rounds, "threads");
  for (const CeilingsOf& c : probe.by_threads) out += fmt::format("{:>34}", c.threads);
  out += '\n';
  for (const CeilingName& row : CeilingNames()) {
    out += fmt::format("{:<20}", row.title);
    for (const CeilingsOf& c : probe.by_threads) {
      const Measured& m = c[row.ceiling];
      out += fmt::format("{:>34}",
                         fmt::format("{} ({:.4g} to {:.4g} G)", FormatRate(m.median, row.unit), m.min / 1e9, m.max / 1e9));
    }
    out += '\n';
  }
  out += fmt::format("{:<20}", "barrier");
  for (const CeilingsOf& c : probe.by_threads) {
    const Measured& m = c[Ceiling::kBarrier];
    out += fmt::format("{:>34}", fmt::format("{} ({:.3g} to {:.3g} us)", FormatSeconds(m.median), m.min * 1e6, m.max * 1e6));
  }
  return out + '\n';
}

// Caches have sizes of powers of two; "256 KiB".
std::string SetSize(double bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB"};
  size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < std::size(units); ++unit) bytes /= 1024;
  return fmt::format("{:.3g} {}", bytes, units[unit]);
}

bool PowerOfTwo(double x) {
  return std::exp2(std::round(std::log2(x))) == x;
}

// Sizes over rates, so many to a line.
std::string WorkingSetsText(const Curve& curve) {
  constexpr size_t kPerLine = 8;
  std::vector<CurvePoint> shown;
  for (const CurvePoint& p : curve.points) {
    if (PowerOfTwo(p.x) || p.x == curve.points.back().x) shown.push_back(p);
  }
  std::string out = "weights of one row, read again and again, by working set (GB/s)\n";
  for (size_t first = 0; first < shown.size(); first += kPerLine) {
    std::string rates;
    for (size_t i = first; i < std::min(first + kPerLine, shown.size()); ++i) {
      out += fmt::format("{:>10}", SetSize(shown[i].x)), rates += fmt::format("{:>10.4g}", shown[i].y / 1e9);
    }
    out += '\n' + rates + '\n';
  }
  return out;
}

bool Has(const Curve& curve, double x) {
  return std::ranges::any_of(curve.points, [&](const CurvePoint& p) { return p.x == x; });
}

std::string Cell(bool known, double value) {
  return fmt::format("{:>12}", known ? fmt::format("{:.4g}", value) : "-");
}

std::string ProductsText(const MachineProfile& m) {
  std::string out = "\nproducts by rows, weights in the caches (GFLOP/s)\n" + std::string(6, ' ');
  for (const DType format : kFormats) out += fmt::format("{:>48}", Name(format));
  out += fmt::format("\n{:<6}", "rows");
  for (size_t f = 0; f < std::size(kFormats); ++f) {
    for (int kind = 0; kind < kNumProductKinds; ++kind) out += fmt::format("{:>12}", Name(static_cast<ProductKind>(kind)));
  }
  out += '\n';
  for (const CurvePoint& p : m.product(DType::kBf16, ProductKind::kLinear).step_s.points) {
    if (!PowerOfTwo(p.x)) continue;
    out += fmt::format("{:<6}", p.x);
    for (const DType format : kFormats) {
      for (int kind = 0; kind < kNumProductKinds; ++kind) {
        const ProductCost& cost = m.product(format, static_cast<ProductKind>(kind));
        const bool known = Has(cost.step_s, p.x);
        out += Cell(known, known ? FlopPerS(cost, p.x) / 1e9 : 0);
      }
    }
    out += '\n';
  }
  return out;
}

// 4 FLOP per pair and value of a head's width, 10 backward.
std::string AttentionText(const MachineProfile& m) {
  std::string out = "\nattention by query rows that share their keys (GFLOP/s)\nrows  ";
  for (const DType format : kFormats) {
    for (const char* pass : {"forward", "backward"}) out += fmt::format("{:>15}", fmt::format("{} {}", Name(format), pass));
  }
  out += '\n';
  for (const CurvePoint& p : m.attention_of(DType::kBf16).pair_s.points) {
    out += fmt::format("{:<6}", p.x);
    for (const DType format : kFormats) {
      const AttentionCost& cost = m.attention_of(format);
      for (const auto& [curve, flop] : {std::pair{&cost.pair_s, 4.0}, std::pair{&cost.backward_pair_s, 10.0}}) {
        const bool known = Has(*curve, p.x);
        out += "   " + Cell(known, known ? flop / curve->At(p.x) / 1e9 : 0);
      }
    }
    out += '\n';
  }
  return out;
}

std::string FixedText(const MachineProfile& m) {
  std::string out = "\npaid once\n";
  const auto line = [&out](std::string_view what, const std::string& value) {
    out += fmt::format("  {:<44}{:>14}\n", what, value);
  };
  if (m.handover_s > 0) line("a value, from one thread to the next", FormatSeconds(m.handover_s));
  line("parallel work, begun and ended", FormatSeconds(m.barrier_s));
  for (const DType format : kFormats) {
    const StreamCost& cost = m.stream(format, ProductKind::kGateUp);
    line(fmt::format("list of {} products whose weights are cold", Name(format)), FormatSeconds(cost.list_s));
    line(fmt::format("each matrix in it"), FormatSeconds(cost.matrix_s));
  }
  line("routing of a token, 64 experts, top 8", FormatSeconds(m.routing.At(1, 64, 8)));
  line("of 256 tokens", FormatSeconds(m.routing.At(256, 64, 8)));
  line("AdamW of bf16 weights, per second", FormatCount(m.adamw_bytes_per_s / AdamwBytes(DType::kBf16)) + " parameters");
  return out;
}

}  // namespace

std::string TextOf(const MachineProfile& machine) {
  return WorkingSetsText(machine.weights_bytes_per_s) + ProductsText(machine) + AttentionText(machine) + FixedText(machine);
}

std::string TextOf(const MachineProbe& probe) {
  if (!probe.profile) return CeilingsText(probe);
  return fmt::format("{}\nThe profile, of {} threads. Medians of {} round{}, {:.1f} s in all.\n\n{}", CeilingsText(probe),
                     probe.profile->threads, probe.profile_rounds, probe.profile_rounds == 1 ? "" : "s", probe.seconds,
                     TextOf(*probe.profile));
}

std::string TextOfBuiltInMachines() {
  std::string out;
  for (const std::string_view name : MachineNames()) {
    const MachineProfile m = BuiltInMachine(std::string(name)).value();
    out += fmt::format("{}{}: {}\n  {} of memory, {}; {} in f32, {} in bf16, {} in int8\n", out.empty() ? "" : "\n", m.name,
                       m.cpu, SetSize(static_cast<double>(m.memory_bytes)), FormatRate(m.memory_bytes_per_s(), "B"),
                       FormatRate(m.peak_f32, "FLOP"), FormatRate(m.peak_bf16, "FLOP"), FormatRate(m.peak_int8, "OP"));
    out += Wrapped("  " + m.source + '\n', 2);
  }
  return out;
}

}  // namespace moe
