#include "moe/planner/probe_json.h"

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "moe/costs/machine_json.h"

namespace moe {
namespace {

constexpr CeilingName kNames[] = {
    {Ceiling::kRead, "read", "B", "read_bytes_per_s", "read"},
    {Ceiling::kReadChunks, "read, 4 MiB chunks", "B", "chunk_read_bytes_per_s", "chunk_read"},
    {Ceiling::kWeights, "weights of one row", "B", "weights_bytes_per_s", "weights"},
    {Ceiling::kReadModifyWrite, "read-modify-write", "B", "rmw_bytes_per_s", "rmw"},
    {Ceiling::kOptimizerStream, "optimizer's streams", "B", "optimizer_bytes_per_s", "optimizer"},
    {Ceiling::kPeakF32, "f32", "FLOP", "f32", "peak"},
    {Ceiling::kPeakBf16, "bf16", "FLOP", "bf16", "peak"},
    {Ceiling::kPeakInt8, "int8", "OP", "int8", "peak"},
};

nlohmann::json JsonOf(const CeilingsOf& c) {
  nlohmann::json j = {{"threads", c.threads}, {"barrier_s", c[Ceiling::kBarrier].median}};
  for (const CeilingName& name : kNames) {
    const Measured& m = c[name.ceiling];
    const bool bytes = std::string_view(name.unit) == "B";
    auto& place = bytes ? j : j["peak_flop_per_s"];
    place[name.key] = m.median;
    if (bytes) place[std::string(name.key) + "_min"] = m.min, place[std::string(name.key) + "_max"] = m.max;
  }
  return j;
}

}  // namespace

std::span<const CeilingName> CeilingNames() {
  return kNames;
}

nlohmann::json JsonOf(const MachineProbe& probe) {
  nlohmann::json j = JsonOf(probe.all());
  j["cpu"] = probe.cpu, j["isa"] = probe.isa, j["rounds"] = probe.rounds, j["interrupted"] = probe.interrupted;
  if (probe.profile) {
    j.update(JsonOf(*probe.profile));
    j["profile_rounds"] = probe.profile_rounds, j["seconds"] = probe.seconds;
  }
  j["by_threads"] = nlohmann::json::array();
  for (const CeilingsOf& c : probe.by_threads) j["by_threads"].push_back(JsonOf(c));
  return j;
}

}  // namespace moe
