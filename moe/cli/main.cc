// The program: a table of commands.

#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "moe/base/version.h"
#include "moe/cli/commands.h"
#include "moe/cli/common.h"

namespace moe {
namespace {

struct Command {
  const char* name;
  const char* summary;
  int (*run)(int argc, char** argv);
};

// In the order in which a newcomer meets them.
const std::vector<Command> kCommands = {
    {"train", "trains a model as a recipe says", RunTrain},
    {"eval", "measures a model on text: loss, bits per byte, how its experts are used", RunEval},
    {"generate", "continues a prompt", RunGenerate},
    {"inspect", "shows what a model is: layers, routing, parameters, memory", RunInspect},
    {"compare", "trains variants of a recipe beside one another: one table, one page", RunCompare},
    {"route", "shows what a model's experts do, and what other policies would do", RunRoute},
    {"plan", "says what a model will do on a machine, at every batch size", RunPlan},
    {"sweep", "measures a model beside its dense twins, at every batch size", RunSweep},
    {"probe", "measures what this machine can do at most", RunProbe},
    {"bench", "measures the parts of a step as fractions of that", RunBench},
    {"upcycle", "makes a mixture of experts of a dense model", RunUpcycle},
    {"trace", "walks one batch through one MoE layer, step by step", RunTrace},
};

int Print(const std::string& text) {
  const auto written = WriteStdout(text);
  return written ? 0 : Fail(written.error());
}

int Help() {
  std::string text =
      "moe trains Mixture-of-Experts language models, runs them, and says at which batch size they pay off here.\n\n"
      "Usage: moe COMMAND [FLAGS]\n\nCommands:\n";
  for (const Command& command : kCommands) text += fmt::format("  {:<10} {}\n", command.name, command.summary);
  text +=
      "\n  moe COMMAND --help   flags and examples of a command\n"
      "  moe --version        version and instruction sets\n\n"
      "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C. Errors are one line on stderr.\n"
      "MOE_ISA=NAME forces an instruction set.\n";
  return Print(text);
}

int PrintVersion() {
  const auto in_use = SelectKernelTable();
  if (!in_use) return Fail(in_use.error());
  std::vector<std::string> names;
  for (const KernelTable* table : BuiltInKernelTables()) names.push_back(table->name);
  return Print(fmt::format("moe {}\nbuilt in: {}\nin use: {}\n", Version(), JoinNames(names), (*in_use)->name));
}

int Main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);  // a reader that leaves must not kill a training run; writes report it
  std::string_view name = argc > 1 ? argv[1] : "--help";
  if (name == "--version" || name == "version") return PrintVersion();
  if (name == "--help" || name == "-h") return Help();
  if (name == "help") {
    if (argc < 3) return Help();
    name = argv[2];
  }
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    names.push_back(command.name);
    if (name != command.name) continue;
    if (std::string_view(argv[1]) != "help") return command.run(argc - 1, argv + 1);
    std::string help = "--help";
    char* arguments[] = {argv[2], help.data(), nullptr};
    return command.run(2, arguments);
  }
  const std::string_view nearest = Nearest(name, names);
  return Fail({"command",
               fmt::format("got '{}', expected one of {}{}", name, JoinNames(names),
                           nearest.empty() ? "" : fmt::format("; did you mean '{}'?", nearest)),
               2});
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) {
  int exit_code = 1;
  try {
    exit_code = moe::Main(argc, argv);
  } catch (const std::bad_alloc&) {
    exit_code = moe::Fail({"memory", "got none left, expected more free memory or a smaller model"});
  } catch (const std::exception& error) {
    exit_code = moe::Fail({"internal", error.what()});
  }
  if (std::fflush(stdout) != 0 && errno != EPIPE && exit_code == 0) {
    exit_code = moe::Fail({"stdout", "got a write error, expected room for the output"});
  }
  return exit_code;
}
