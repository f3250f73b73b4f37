#include "moe/planner/bench_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <vector>

#include "moe/base/check.h"
#include "moe/base/progress.h"
#include "moe/planner/probe_json.h"

namespace moe {
namespace {

std::string Spread(const Measured& m, const char* unit = "") {
  return fmt::format("{:.3f}{} ({:.3f} to {:.3f})", m.median, unit, m.min, m.max);
}

constexpr double kApart = 2;  // times: of bounds that differ by so much, one counts alone; nearer together they share a ridge

// "geometric mean 0.934, least 0.893 at bf16/256x1024x1024", of at least so many.
template <class F>
std::string MeanAndLeast(std::span<const BenchResult> results, F&& value, int at_least = 2) {
  double logs = 0, least = INFINITY;
  int count = 0;
  const BenchResult* at = nullptr;
  for (const BenchResult& r : results) {
    const double x = value(r);
    if (!(x > 0)) continue;
    logs += std::log(x), ++count;
    if (x < least) least = x, at = &r;
  }
  if (count < at_least) return "";
  return fmt::format("geometric mean {:.3f}, least {:.3f} at {}", std::exp(logs / count), least, at->name);
}

// In the order of their first result.
template <class F>
std::vector<std::string> Distinct(std::span<const BenchResult> results, F&& names) {
  std::vector<std::string> out;
  for (const BenchResult& r : results) {
    for (const std::string& name : names(r)) {
      if (!name.empty() && std::ranges::find(out, name) == out.end()) out.push_back(name);
    }
  }
  return out;
}

// What stands under the rows of one kind.
std::string KindSummary(std::span<const BenchResult> rows, const std::string& indent) {
  std::string out;
  const auto add = [&](const std::string& title, const std::string& text) {
    if (!text.empty()) out += fmt::format("{}{:<28}{}\n", indent, title + ": ", text);
  };
  add("fraction", MeanAndLeast(rows, [](const BenchResult& r) { return r.fraction.median; }));
  if (rows.size() > 1) {
    const auto fraction = [](bool apart) {
      return [=](const BenchResult& r) {
        return r.bounds.size() > 1 && (r.bounds_differ.median >= kApart) == apart ? r.fraction.median : 0;
      };
    };
    add("  bounds differ by 2x", MeanAndLeast(rows, fraction(true), 1));
    add("  at the ridge", MeanAndLeast(rows, fraction(false), 1));
  }
  for (const std::string& name : Distinct(rows, [](const BenchResult& r) { return std::vector{r.reference}; })) {
    add((rows[0].reference_is_part ? "share of " : "of ") + name,
        MeanAndLeast(rows, [&](const BenchResult& r) { return r.reference == name ? r.reference_ratio.median : 0; }));
  }
  const auto peers = Distinct(rows, [](const BenchResult& r) {
    std::vector<std::string> names;
    for (const PeerResult& p : r.peers) names.push_back(p.name);
    return names;
  });
  for (const std::string& name : peers) {
    add(name + "'s time/ours", MeanAndLeast(rows, [&](const BenchResult& r) {
          const auto p = std::ranges::find(r.peers, name, &PeerResult::name);
          return p == r.peers.end() ? 0 : p->ratio.median;
        }));
  }
  if (peers.size() > 1) {
    add("best peer's time/ours",
        MeanAndLeast(rows, [](const BenchResult& r) { return r.peers.empty() ? 0 : r.peers[0].ratio.median; }));
  }
  return out;
}

const char* KeyOf(Ceiling c) {
  for (const CeilingName& name : CeilingNames()) {
    if (name.ceiling == c) return name.bound;
  }
  MOE_CHECK(false, "ceiling {} has no name", static_cast<int>(c));
  return "";
}

void Put(nlohmann::json& j, const std::string& key, const Measured& m) {
  j[key] = m.median, j[key + "_min"] = m.min, j[key + "_max"] = m.max;
}

nlohmann::json JsonOf(const BenchResult& r) {
  nlohmann::json j = {{"group", r.group}, {"name", r.name}, {"rounds", r.rounds}};
  Put(j, r.in_bytes ? "bytes_per_s" : "flop_per_s", r.per_s);
  Put(j, r.in_bytes ? "ceiling_bytes_per_s" : "ceiling_flop_per_s", r.ceiling);
  Put(j, "fraction", r.fraction);
  j["run_s"] = r.run_s.median;
  if (!r.kind.empty()) j["kind"] = r.kind;
  for (const BoundResult& b : r.bounds) j["bounds_s"][KeyOf(b.ceiling)] = b.s.median;
  if (r.bounds.size() > 1) j["bounds_differ"] = r.bounds_differ.median;
  if (!r.reference.empty()) {
    j["reference"] = r.reference;
    Put(j, "reference_ratio", r.reference_ratio);
  }
  if (r.scaled) Put(j, "speedup", r.speedup), Put(j, "ceiling_speedup", r.ceiling_speedup);
  if (r.peers.empty()) return j;
  j["peer"] = r.peers[0].name;
  Put(j, "peer_ratio", r.peers[0].ratio);
  for (const PeerResult& p : r.peers) {
    nlohmann::json peer = {{"peer", p.name}};
    Put(peer, "peer_ratio", p.ratio);
    j["peers"].push_back(std::move(peer));
  }
  return j;
}

}  // namespace

std::string BenchHeader(int name_width) {
  return fmt::format("{:<{}}{:>15}{:>15}   {}\n", "", name_width, "rate", "ceiling",
                     "fraction: median (least to most of rounds)");
}

std::string BenchRow(const BenchResult& r, int name_width) {
  const char* unit = r.in_bytes ? "B" : "FLOP";
  std::string out = fmt::format("{:<{}}{:>15}{:>15}   {}", r.group + "/" + r.name, name_width, FormatRate(r.per_s.median, unit),
                                FormatRate(r.ceiling.median, unit), Spread(r.fraction));
  if (!r.reference.empty())
    out += fmt::format("   {} {} {}", Spread(r.reference_ratio), r.reference_is_part ? "is" : "of", r.reference);
  if (r.scaled) out += fmt::format(": {:.3f}x, ceiling {:.3f}x", r.speedup.median, r.ceiling_speedup.median);
  if (r.bounds.size() > 1) {
    out += "   bounds";
    for (size_t i = 0; i < r.bounds.size(); ++i) {
      out += fmt::format("{} {} {:.1f} us", i == 0 ? "" : ",", KeyOf(r.bounds[i].ceiling), r.bounds[i].s.median * 1e6);
    }
    out += fmt::format(": {:.2f}x", r.bounds_differ.median);
  }
  for (size_t i = 0; i < r.peers.size(); ++i) {
    out += fmt::format("{} {} {}", i == 0 ? "  " : ",", r.peers[i].name, Spread(r.peers[i].ratio, "x"));
  }
  return out + '\n';
}

std::string BenchSummary(std::span<const BenchResult> group) {
  const auto summary_of = [&](const std::string& kind, const std::string& indent) {
    std::vector<BenchResult> rows;
    std::ranges::copy_if(group, std::back_inserter(rows), [&](const BenchResult& r) { return r.kind == kind; });
    return KindSummary(rows, indent);
  };
  std::string out = summary_of("", "  ");
  for (const std::string& kind : Distinct(group, [](const BenchResult& r) { return std::vector{r.kind}; })) {
    if (const std::string text = summary_of(kind, "    "); !text.empty()) out += fmt::format("  {}\n{}", kind, text);
  }
  return out;
}

nlohmann::json BenchJson(const MachineProbe& probe, std::span<const BenchResult> results, bool interrupted) {
  nlohmann::json j = {{"ceilings", JsonOf(probe)}, {"cases", nlohmann::json::array()}, {"interrupted", interrupted}};
  for (const BenchResult& r : results) j["cases"].push_back(JsonOf(r));
  return j;
}

}  // namespace moe
