// moe bench: our own parts, as fractions of ceilings measured beside them.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <optional>

#include "moe/base/cpu_info.h"
#include "moe/base/interrupt.h"
#include "moe/base/progress.h"
#include "moe/cli/buffer_flag.h"
#include "moe/cli/commands.h"
#include "moe/cli/common.h"
#include "moe/files/text_file.h"
#include "moe/planner/bench_report.h"
#include "moe/planner/bench_subjects.h"

namespace moe {
namespace {

constexpr double kProbeSeconds = 1;  // of what the JSON calls ceilings: every case has its own beside it

struct Flags {
  CommonFlags common;
  std::string subject, filter, dtype = "bf16";
  std::optional<std::string> shapes;
  double seconds = 1;
  BufferFlag buffer;
};

Result<const BenchSubject*> FindSubject(const std::string& name) {
  std::vector<std::string> names;
  for (const BenchSubject& subject : BenchSubjects()) {
    if (subject.name == name) return &subject;
    names.emplace_back(subject.name);
  }
  return UsageErr("SUBJECT", "got {}, expected one of {}", name.empty() ? "nothing" : "'" + name + "'", JoinNames(names));
}

Result<DType> ParseFormat(const std::string& name) {
  for (const DType format : {DType::kBf16, DType::kF32}) {
    if (Name(format) == name) return format;
  }
  return UsageErr("--dtype", "got '{}', expected bf16 or f32", name);
}

Result<std::vector<BenchCase>> CasesOf(const Flags& flags) {
  MOE_TRY(const BenchSubject* subject, FindSubject(flags.subject));
  MOE_TRY(const DType format, ParseFormat(flags.dtype));
  BenchShapes shapes = DefaultBenchShapes();
  if (flags.shapes) {
    if (flags.shapes->empty()) return UsageErr("--shapes", "got '', expected a file");
    MOE_TRY(const std::string text, ReadTextFile(*flags.shapes));
    MOE_TRY(shapes, ParseBenchShapes(text, *flags.shapes));
  }
  shapes.cold_bytes = flags.buffer.bytes();
  std::vector<BenchCase> cases = subject->cases(shapes, format, nullptr);
  if (cases.empty()) {
    return Err(flags.shapes.value_or("defaults"), "got no shape for 'moe bench {}', expected lines that begin with {}",
               subject->name, subject->shapes);
  }
  const std::string some = cases[0].group + "/" + cases[0].name;
  std::erase_if(cases, [&](const BenchCase& c) { return (c.group + "/" + c.name).find(flags.filter) == std::string::npos; });
  if (cases.empty()) return UsageErr("--filter", "got '{}', expected a part of a case's name, such as {}", flags.filter, some);
  return cases;
}

class Table {
 public:
  Table(bool shown, const std::vector<BenchCase>& cases) : shown_(shown) {
    for (const BenchCase& c : cases) name_width_ = std::max(name_width_, static_cast<int>(c.group.size() + c.name.size()) + 1);
  }
  Result<bool> Begin(const std::string& title) { return Print(title + "\n\n" + BenchHeader(name_width_)); }
  // False: nobody reads any more.
  Result<bool> Print(const std::string& text) { return shown_ && !text.empty() ? WriteStdout(text) : true; }
  Result<bool> Add(BenchResult result) {
    std::string text;
    if (!results_.empty() && results_.back().group != result.group) text = EndGroup();
    results_.push_back(std::move(result));
    return Print(text + BenchRow(results_.back(), name_width_));
  }
  // Summary of the rows since the last one.
  std::string EndGroup() {
    const std::string text = BenchSummary(std::span(results_).subspan(group_begin_));
    group_begin_ = results_.size();
    return text + "\n";
  }
  const std::vector<BenchResult>& results() const { return results_; }

 private:
  bool shown_;
  int name_width_ = 0;
  std::vector<BenchResult> results_;
  size_t group_begin_ = 0;
};

Result<int> Bench(const Flags& flags) {
  if (!(flags.seconds >= 0 && flags.seconds <= 3600)) {
    return UsageErr("--seconds", "got {}, expected 0 to 3600", flags.seconds);
  }
  MOE_TRY(CheckBuffer(flags.buffer));
  MOE_TRY(const std::vector<BenchCase> cases, CasesOf(flags));
  MOE_TRY(CheckJsonTarget(flags.common));
  MOE_TRY(const std::unique_ptr<RunContext> context, MakeRunContext(flags.common));
  ExecContext& ctx = context->exec;
  InstallInterruptHandler();
  const bool quiet = flags.common.json_on_stdout();
  // Rows on the terminal are progress enough; a moving line between them would tear them.
  const bool moving = !quiet && ::isatty(STDOUT_FILENO) == 0;
  ProgressLine line;
  const auto show = [&](double share, const std::string& what) {
    if (moving && line.Due()) line.Update(ProgressBar(share, 20) + " " + what);
  };
  const MachineProbe machine = ProbeMachine({.max_threads = ctx.pool.num_threads(),
                                             .seconds = std::min(kProbeSeconds, flags.seconds),
                                             .buffer_bytes = flags.buffer.bytes()},
                                            ctx.kernels, [&](double) { show(0, "measuring this machine"); });
  Table table(!quiet, cases);
  MOE_TRY(bool read, table.Begin(fmt::format("{}, {}, {} threads, {} s a case", machine.cpu, machine.isa,
                                             ctx.pool.num_threads(), flags.seconds)));
  CeilingProbe probe(flags.buffer.bytes(), ctx.kernels);
  std::vector<std::string> skipped;
  for (size_t i = 0; i < cases.size() && read && !InterruptRequested(); ++i) {
    const BenchCase& c = cases[i];
    if (const int64_t available = AvailableMemoryBytes(); c.memory_bytes > available) {
      skipped.push_back(c.group + "/" + c.name);
      MOE_TRY(read, table.Print(fmt::format("{}: left out: needs {}, {} are free\n", skipped.back(),
                                            FormatBytes(static_cast<double>(c.memory_bytes)),
                                            FormatBytes(static_cast<double>(available)))));
      continue;
    }
    show(static_cast<double>(i) / static_cast<double>(cases.size()), c.group + "/" + c.name);
    MOE_TRY(read, table.Add(RunBench(c, flags.seconds, probe, ctx)));
  }
  line.Finish();
  MOE_TRY(table.Print(table.EndGroup()));
  nlohmann::json json = BenchJson(machine, table.results(), InterruptRequested());
  json["skipped"] = skipped;
  MOE_TRY(WriteJsonResult(flags.common, json));
  return InterruptRequested() ? kExitInterrupted : 0;
}

}  // namespace

int RunBench(int argc, char** argv) {
  Flags flags;
  std::string subjects;
  for (const BenchSubject& s : BenchSubjects())
    subjects += fmt::format("{}{}: {}", subjects.empty() ? "" : "\n", s.name, s.summary);
  CLI::App app("Measures our own parts as fractions of what this machine can do, probed beside every run of them.",
               "moe bench");
  app.add_option("SUBJECT", flags.subject, subjects)->type_name("");
  app.add_option("--seconds", flags.seconds, "To spend on each case (default 1); three rounds even so")->type_name("X");
  AddBufferFlag(app, flags.buffer);
  app.add_option("--shapes", flags.shapes, "Shapes to measure, such as benches/shapes/olmoe-1b-7b.txt (default: a few)")
      ->type_name("FILE");
  app.add_option("--filter", flags.filter, "Only cases with this in their name")->type_name("TEXT");
  app.add_option("--dtype", flags.dtype, "What products read: bf16 (default) or f32")->type_name("bf16|f32");
  AddCommonFlags(app, flags.common);
  SetExamples(app,
              {{"moe bench gemm", "matrix products, as fractions of the multiply-add peak"},
               {"moe bench gemm --shapes benches/shapes/dense.txt --filter dense/", "the forward ones, over a grid of sizes"},
               {"moe bench gemm --filter balanced", "the products of all experts, beside one dense product"},
               {"moe bench moe --shapes benches/shapes/olmoe-1b-7b.txt --filter decode", "a layer of OLMoE, token by token"},
               {"moe bench optimizer --json bench.json", "and kept, for other programs"}});
  if (const auto code = ParseFlags(app, argc, argv)) return *code;
  const auto code = Bench(flags);
  return code ? *code : Fail(code.error());
}

}  // namespace moe
