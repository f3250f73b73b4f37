#include "moe/planner/machine_cache.h"

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "moe/base/cpu_info.h"
#include "moe/base/version.h"
#include "moe/costs/machine_json.h"
#include "moe/files/atomic_file.h"
#include "moe/files/json.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

constexpr int kInterrupted = 130;  // exit code, as of shells

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool Exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

bool LooksLikeAFile(const std::string& value) {
  return Exists(value) || value.find('/') != std::string::npos || value.ends_with(".json");
}

}  // namespace

std::string MachineCachePath() {
  if (std::string path = Environment("MOE_MACHINE_CACHE"); !path.empty()) return path;
  // A relative XDG_CACHE_HOME is invalid (XDG Base Directory Specification).
  if (const std::string cache = Environment("XDG_CACHE_HOME"); cache.starts_with('/')) return cache + "/moe/machine.json";
  const std::string home = Environment("HOME");
  return home.empty() ? "" : home + "/.cache/moe/machine.json";
}

Result<MachineProfile> ReadMachine(const std::string& path) {
  MOE_TRY(const nlohmann::json json, LoadJson(path));
  return MachineFromJson(json, path);
}

Status WriteMachine(const std::string& path, const MachineProfile& machine) {
  std::error_code error;
  if (fs::exists(path, error) && !fs::is_regular_file(path, error))
    return Err(path, "got no regular file, expected one or none");
  const fs::path folder = fs::path(path).parent_path();
  if (!folder.empty()) fs::create_directories(folder, error);
  if (error) return Err(path, "got '{}', expected to make its folder", error.message());
  return WriteFileAtomically(path, JsonOf(machine).dump(1) + '\n');
}

std::string Staleness(const MachineProfile& machine, const ExecContext& ctx) {
  const auto differs = [](std::string_view what, const std::string& kept, std::string_view now) {
    return fmt::format("of {} '{}', this is '{}'", what, Printable(kept), now);
  };
  if (machine.cpu != GetCpuInfo().name) return differs("processor", machine.cpu, GetCpuInfo().name);
  if (machine.isa != ctx.kernels.name) return differs("kernels", machine.isa, ctx.kernels.name);
  if (machine.version != Version()) return differs("version", machine.version, Version());
  if (machine.revision != kProfileRevision) {
    return fmt::format("of revision {}, this program measures revision {}", machine.revision, kProfileRevision);
  }
  if (machine.threads != ctx.pool.num_threads()) {
    return fmt::format("of {} threads, this process has {}", machine.threads, ctx.pool.num_threads());
  }
  return {};
}

// What a file says nothing of is filled in by reckoning, which a measured profile needs nowhere.
std::string Missing(const nlohmann::json& kept, const MachineProfile& machine) {
  const nlohmann::json whole = JsonOf(machine);
  for (const auto& [key, value] : whole.items()) {
    if (!kept.contains(key) || kept[key].size() != value.size()) return key;
  }
  return {};
}

KeptMachine ReadKeptMachine(const std::string& path, const ExecContext& ctx) {
  if (path.empty()) return {{}, "there is no profile of this machine"};
  if (!Exists(path)) return {{}, fmt::format("there is no profile of this machine at {}", path)};
  const auto json = LoadJson(path);
  if (!json) return {{}, fmt::format("{} is broken ({})", path, json.error().what)};
  const auto machine = MachineFromJson(*json, path);
  if (!machine) return {{}, fmt::format("{} is broken ({})", path, machine.error().what)};
  const std::string stale = Staleness(*machine, ctx), missing = Missing(*json, *machine);
  if (!stale.empty()) return {{}, fmt::format("{} is {}", path, stale)};
  if (!missing.empty()) return {{}, fmt::format("{} lacks some of '{}'", path, missing)};
  return {*machine, ""};
}

Result<MachineProfile> LoadOrProbe(const MachineRequest& request, ExecContext& ctx) {
  if (!request.machine.empty()) {
    auto known = BuiltInMachine(request.machine);
    if (known || !LooksLikeAFile(request.machine)) return known;
    return ReadMachine(request.machine);
  }
  const KeptMachine kept = ReadKeptMachine(request.cache, ctx);
  if (kept.machine) return *kept.machine;
  const auto say = [&](const std::string& line) {
    if (request.say) request.say(line);
  };
  say(fmt::format("{}: probing it, {:.0f} s", kept.why, request.seconds));
  MeasuredProfile measured = request.measure(request.seconds, request.buffer_bytes, request.progress, ctx);
  if (measured.interrupted) {
    return tl::make_unexpected(Error{"machine", "got Ctrl-C, expected time to measure it", kInterrupted});
  }
  if (request.cache.empty()) {
    say("neither MOE_MACHINE_CACHE nor HOME is set: the profile is not kept");
  } else if (const Status written = WriteMachine(request.cache, measured.machine); !written) {
    say(fmt::format("{} {}: the profile is not kept", written.error().where, written.error().what));
  }
  return std::move(measured.machine);
}

}  // namespace moe
