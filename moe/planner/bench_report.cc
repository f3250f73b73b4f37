#include "moe/planner/bench_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "moe/base/progress.h"
#include "moe/planner/probe_json.h"

namespace moe {
namespace {

std::string Spread(const Measured& m, const char* unit = "") {
  return fmt::format("{:.3f}{} ({:.3f} to {:.3f})", m.median, unit, m.min, m.max);
}

// "geometric mean 0.934, least 0.893 at bf16/256x1024x1024"
template <class F>
std::string MeanAndLeast(std::span<const BenchResult> results, F&& value) {
  double logs = 0, least = INFINITY;
  int count = 0;
  const BenchResult* at = nullptr;
  for (const BenchResult& r : results) {
    const double x = value(r);
    if (!(x > 0)) continue;
    logs += std::log(x), ++count;
    if (x < least) least = x, at = &r;
  }
  if (count < 2) return "";
  return fmt::format("geometric mean {:.3f}, least {:.3f} at {}", std::exp(logs / count), least, at->name);
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
  if (!r.reference.empty()) {
    j["reference"] = r.reference;
    Put(j, "reference_ratio", r.reference_ratio);
  }
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
  for (size_t i = 0; i < r.peers.size(); ++i) {
    out += fmt::format("{} {} {}", i == 0 ? "  " : ",", r.peers[i].name, Spread(r.peers[i].ratio, "x"));
  }
  return out + '\n';
}

std::string BenchSummary(std::span<const BenchResult> group) {
  std::string out;
  const auto add = [&](const char* title, const std::string& text) {
    if (!text.empty()) out += fmt::format("  {:<22}{}\n", title, text);
  };
  add("fraction:", MeanAndLeast(group, [](const BenchResult& r) { return r.fraction.median; }));
  add("of the reference:",
      MeanAndLeast(group, [](const BenchResult& r) { return r.reference_is_part ? 0 : r.reference_ratio.median; }));
  add("best peer's time/ours:",
      MeanAndLeast(group, [](const BenchResult& r) { return r.peers.empty() ? 0 : r.peers[0].ratio.median; }));
  return out;
}

nlohmann::json BenchJson(const MachineProbe& probe, std::span<const BenchResult> results, bool interrupted) {
  nlohmann::json j = {{"ceilings", JsonOf(probe)}, {"cases", nlohmann::json::array()}, {"interrupted", interrupted}};
  for (const BenchResult& r : results) j["cases"].push_back(JsonOf(r));
  return j;
}

}  // namespace moe
