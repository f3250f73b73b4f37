// moe probe: what this machine can do at most.

#include "moe/planner/probe.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "moe/base/cpu_info.h"
#include "moe/base/interrupt.h"
#include "moe/base/progress.h"
#include "moe/cli/commands.h"
#include "moe/cli/common.h"
#include "moe/planner/probe_json.h"

namespace moe {
namespace {

std::string TextOf(const MachineProbe& probe) {
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

}  // namespace

int RunProbe(int argc, char** argv) {
  CommonFlags common;
  ProbeOptions options;
  CommonFlags machine;  // --out: the same JSON, under the name that other commands look for
  CLI::App app("Measures what this machine can do at most: memory, multiply-adds, barriers, for 1, 2, 4 ... threads.",
               "moe probe");
  app.add_option("--seconds", options.seconds, "To spend on measuring (default 10)")->type_name("X");
  app.add_option("--out", machine.json, "Write the result to this file, as --json does")->type_name("FILE");
  AddCommonFlags(app, common);
  SetExamples(
      app, {{"moe probe", "the ceilings that other figures are fractions of"}, {"moe probe --out machine.json", "and kept"}});
  if (const auto code = ParseFlags(app, argc, argv)) return *code;
  if (!(options.seconds >= 0 && options.seconds <= 3600)) {
    return Fail({"--seconds", fmt::format("got {}, expected 0 to 3600", options.seconds), 2});
  }
  if (machine.json == "-") return Fail({"--out", "got '-', expected a file; --json - writes to stdout", 2});
  for (const CommonFlags* flags : {&common, &machine}) {
    if (const Status target = CheckJsonTarget(*flags); !target) return Fail(target.error());
  }
  const auto context = MakeRunContext(common);
  if (!context) return Fail(context.error());
  options.max_threads = (*context)->pool.num_threads();
  InstallInterruptHandler();
  MachineProbe probe;
  {
    ProgressLine line;
    probe = ProbeMachine(options, (*context)->kernels, [&](double share) {
      if (!common.json_on_stdout() && line.Due()) line.Update(fmt::format("{} measuring this machine", ProgressBar(share, 20)));
    });
  }
  if (!common.json_on_stdout()) {
    if (const auto written = WriteStdout(TextOf(probe)); !written) return Fail(written.error());
  }
  for (const CommonFlags* flags : {&common, &machine}) {
    if (const Status status = WriteJsonResult(*flags, JsonOf(probe)); !status) return Fail(status.error());
  }
  return probe.interrupted ? kExitInterrupted : 0;
}

}  // namespace moe
