// moe probe: what this machine can do at most, and how long each of our ops takes on it.

#include "moe/planner/probe.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "moe/base/interrupt.h"
#include "moe/base/progress.h"
#include "moe/cli/buffer_flag.h"
#include "moe/cli/commands.h"
#include "moe/cli/common.h"
#include "moe/costs/machine_json.h"
#include "moe/planner/machine_cache.h"
#include "moe/planner/probe_json.h"
#include "moe/planner/probe_text.h"

namespace moe {
namespace {

struct ProbeFlags {
  CommonFlags common, machine;  // machine.json: --out
  double seconds = 18;
  BufferFlag buffer;
  bool list = false;
};

int List(const ProbeFlags& flags) {
  if (!flags.common.json_on_stdout()) {
    if (const auto written = WriteStdout(TextOfBuiltInMachines()); !written) return Fail(written.error());
  }
  nlohmann::json machines = nlohmann::json::array();
  for (const std::string_view name : MachineNames()) machines.push_back(JsonOf(BuiltInMachine(std::string(name)).value()));
  const Status status = WriteJsonResult(flags.common, {{"machines", std::move(machines)}});
  return status ? 0 : Fail(status.error());
}

MachineProbe Measure(const ProbeFlags& flags, ExecContext& ctx) {
  ProgressLine line;
  const auto show = [&](double share) {
    if (!flags.common.json_on_stdout() && line.Due()) {
      line.Update(fmt::format("{} measuring this machine", ProgressBar(share, 20)));
    }
  };
  return ProbeWhole({.seconds = flags.seconds, .buffer_bytes = flags.buffer.bytes()}, show, ctx);
}

// Where plans will find it; what to tell. Only whole ones are kept.
std::string Keep(const MachineProbe& probe) {
  if (!probe.profile) return "\nInterrupted: no profile was kept.\n";
  const std::string path = MachineCachePath();
  if (path.empty()) return "\nNot kept: neither MOE_MACHINE_CACHE nor HOME is set; --out FILE writes it.\n";
  if (const Status written = WriteMachine(path, *probe.profile); !written) {
    return fmt::format("\nNot kept: {}; --out FILE writes it elsewhere.\n", written.error().Message());
  }
  return fmt::format("\nKept in {}\n", path);
}

}  // namespace

int RunProbe(int argc, char** argv) {
  ProbeFlags flags;
  CLI::App app(
      "Measures what this machine can do at most, memory, multiply-adds and barriers, for 1, 2, 4 ... threads, and how "
      "long each of our ops takes with all of them: the profile that plans are made from.",
      "moe probe");
  app.add_option("--seconds", flags.seconds, "To spend on measuring (default 18)")->type_name("X");
  AddBufferFlag(app, flags.buffer);
  app.add_option("--out", flags.machine.json, "Write the profile to this file; otherwise it is kept where plans look for it")
      ->type_name("FILE");
  app.add_flag("--list", flags.list, "Print the built-in machines, their figures and where those are from; measure nothing");
  AddCommonFlags(app, flags.common);
  SetExamples(app, {{"moe probe", "measures this machine, for plans and sweeps to come"},
                    {"moe probe --out machine.json", "into a file, to plan elsewhere: moe plan --machine machine.json"},
                    {"moe probe --list", "machines that need not be measured"}});
  if (const auto code = ParseFlags(app, argc, argv)) return *code;
  if (!(flags.seconds >= 0 && flags.seconds <= 3600)) {
    return Fail({"--seconds", fmt::format("got {}, expected 0 to 3600", flags.seconds), 2});
  }
  if (const Status fits = CheckBuffer(flags.buffer); !fits) return Fail(fits.error());
  if (flags.machine.json == "-") return Fail({"--out", "got '-', expected a file; --json - writes to stdout", 2});
  if (flags.list && !flags.machine.json.empty()) return Fail({"--list", "got --out too, expected one of them", 2});
  for (const CommonFlags* target : {&flags.common, &flags.machine}) {
    if (const Status writable = CheckJsonTarget(*target); !writable) return Fail(writable.error());
  }
  if (flags.list) return List(flags);
  const auto context = MakeRunContext(flags.common);
  if (!context) return Fail(context.error());
  InstallInterruptHandler();
  const MachineProbe probe = Measure(flags, (*context)->exec);
  const std::string kept = flags.machine.json.empty() ? Keep(probe) : "";
  if (!flags.common.json_on_stdout()) {
    if (const auto written = WriteStdout(TextOf(probe) + kept); !written) return Fail(written.error());
  }
  if (const Status status = WriteJsonResult(flags.common, JsonOf(probe)); !status) return Fail(status.error());
  // A machine half measured is none.
  if (probe.interrupted) return kExitInterrupted;
  const Status status = WriteJsonResult(flags.machine, JsonOf(probe));
  return status ? 0 : Fail(status.error());
}

}  // namespace moe
