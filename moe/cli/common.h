#pragma once
// What every command shares: flags, one-line errors, exit codes, the machine-readable result, threads and memory.

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moe/base/arena.h"
#include "moe/base/result.h"
#include "moe/base/thread_pool.h"
#include "moe/ops/exec_context.h"

namespace CLI {
class App;
}

namespace moe {

inline constexpr int kExitInterrupted = 130;  // exit code of work that Ctrl-C ended before it was done, as of shells

struct CommonFlags {
  int threads = 0;   // 0: as many as this process may use
  std::string json;  // where the machine-readable result goes; "-": stdout; empty: nowhere

  bool json_on_stdout() const { return json == "-"; }  // then nothing else is printed there
};

// --threads and --json.
void AddCommonFlags(CLI::App& app, CommonFlags& flags);

// What stands at the end of --help: command lines, each with the reason to type it.
struct Example {
  std::string line, why;
};
void SetExamples(CLI::App& app, const std::vector<Example>& examples);

// Parses argv[1..argc). Nothing returned: go on. Otherwise the command ends with this exit code, and help or the error has been
// printed. A flag without a value that is wanted, a wrong type, an unknown flag: one line, exit code 2.
std::optional<int> ParseFlags(CLI::App& app, int argc, char** argv);

// Prints "moe: [where] what" on stderr, always as one line, and returns the exit code.
int Fail(const Error& error);

// The candidate with the fewest edits from `got`, if there are few; empty otherwise.
std::string_view Nearest(std::string_view got, const std::vector<std::string>& candidates);
// "a, b, c"
std::string JoinNames(const std::vector<std::string>& names);

// To flags.json, indented; nothing when it is empty. A file appears whole or not at all.
Status WriteJsonResult(const CommonFlags& flags, const nlohmann::json& result);
// Before long work: whether WriteJsonResult will find a folder to write to.
Status CheckJsonTarget(const CommonFlags& flags);
// The same of a page, which may be "" for none; never stdout, never the file of --json.
Status CheckPageTarget(const CommonFlags& flags, const std::string& page);

// Text on stdout, at once. False: nobody reads any more (a closed pipe); not an error, but no reason to go on.
Result<bool> WriteStdout(std::string_view text);

// What a command computes with. Members in the order of their making.
struct RunContext {
  ThreadPool pool;
  Arena arena;
  const KernelTable& kernels;
  ExecContext exec;

  RunContext(int num_threads, const KernelTable& table) : pool(num_threads), kernels(table), exec{pool, arena, kernels} {}
};
// Errors: MOE_ISA names no usable table; threads out of range.
Result<std::unique_ptr<RunContext>> MakeRunContext(const CommonFlags& flags);

}  // namespace moe
