#include "moe/cli/common.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "moe/base/cpu_info.h"
#include "moe/base/edit_distance.h"
#include "moe/files/atomic_file.h"

namespace moe {
namespace {

constexpr int kMaxThreads = 1024;

std::string OneLine(std::string_view text) {
  std::string line;
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (c == '\n') {
      line += "\\n";
    } else if (u < 0x20 || u == 0x7f) {
      line += fmt::format("\\x{:02x}", u);
    } else {
      line += c;
    }
  }
  return line;
}

// What an option wants, in words, from the name that CLI11 gives its type.
std::string Wants(const CLI::Option* option) {
  const std::string type = option == nullptr ? "" : option->get_type_name();
  if (type == "UINT") return "an integer, 0 or more";
  if (type == "INT" || type == "N") return "an integer";
  if (type == "FLOAT" || type == "X") return "a number";
  return type.empty() || type == "TEXT" ? "a value" : type;
}

// The option of a message that starts with its name: "--top-k: 1 required INT missing".
const CLI::Option* OptionIn(const CLI::App& app, const std::string& message) {
  const CLI::Option* found = nullptr;
  size_t length = 0;
  for (const CLI::Option* option : app.get_options()) {
    const std::string name = option->get_name();
    const size_t at = message.find(name);
    if (at != std::string::npos && name.size() > length) found = option, length = name.size();
  }
  return found;
}

std::string Given(const CLI::Option* option) {
  std::string given;
  for (const std::string& value : option->results()) given += (given.empty() ? "" : " ") + value;
  return given;
}

// What "-m" or "--modle" may have meant; empty where nothing is near. A letter stands for the first long flag that begins with
// it.
std::string NearestFlag(const std::string& flag, const std::vector<std::string>& names) {
  if (flag.size() != 2 || flag[1] == '-') return std::string(Nearest(flag, names));
  const auto named = std::ranges::find_if(names, [&](const std::string& name) { return name.starts_with("-" + flag); });
  return named == names.end() ? "" : *named;
}

Error UnknownFlag(const CLI::App& app, const std::string& got) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options([](const CLI::Option* o) { return o->nonpositional(); })) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  const std::string flag = got.substr(0, got.find('=')), nearest = NearestFlag(flag, names);
  return {"flags",
          fmt::format("got '{}', expected {}", flag,
                      nearest.empty() ? "one of " + JoinNames(names) : fmt::format("'{}'?", nearest)),
          2};
}

Error Translate(const CLI::App& app, const CLI::ParseError& error) {
  const std::string message = error.what();
  const auto usage = [](std::string where, std::string what) { return Error{std::move(where), std::move(what), 2}; };
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    const auto extras = app.remaining();
    const std::string got = extras.empty() ? message : extras.front();
    if (got.starts_with("-")) return UnknownFlag(app, got);
    return usage("arguments", fmt::format("got '{}', expected only flags; see {} --help", got, app.get_name()));
  }
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {  // more likely misspelled than forgotten
    const auto extras = app.remaining();
    const auto flag = std::ranges::find_if(extras, [](const std::string& extra) { return extra.starts_with("-"); });
    if (flag != extras.end()) return UnknownFlag(app, *flag);
  }
  const CLI::Option* option = OptionIn(app, message);
  const std::string where = option == nullptr ? "flags" : option->get_name();
  if (option == nullptr) return usage(where, message);
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    return usage(where, fmt::format("got nothing, expected {}; see {} --help", Wants(option), app.get_name()));
  }
  if (dynamic_cast<const CLI::ConversionError*>(&error) != nullptr) {
    return usage(where, fmt::format("got '{}', expected {}", Given(option), Wants(option)));
  }
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr) {
    const size_t count = option->results().size();
    if (count == 0) return usage(where, fmt::format("got no value, expected {}", Wants(option)));
    return usage(where, fmt::format("got {} values, expected one", count));
  }
  return usage(where, message);
}

Status SystemErr(const std::string& path) {
  return Err(path, "got '{}', expected to write the result there", std::strerror(errno));
}

Status WriteAll(int descriptor, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(descriptor, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SystemErr(path);
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}

// As nlohmann's dump(2), but lists of numbers and strings on one line.
void AppendJson(const nlohmann::json& json, const std::string& indent, std::string& out) {
  const std::string inner = indent + "  ";
  const bool one_line = std::none_of(json.begin(), json.end(), [](const auto& x) { return x.is_structured(); });
  if (!json.is_structured() || json.empty() || (json.is_array() && one_line)) {
    std::string text = json.dump(json.is_array() ? 0 : -1, ' ', false, nlohmann::json::error_handler_t::replace);
    std::replace(text.begin(), text.end(), '\n', ' ');  // dump escapes those of strings
    if (json.is_array() && !json.empty()) text = "[" + text.substr(2, text.size() - 4) + "]";
    out += text;
    return;
  }
  out += json.is_array() ? "[\n" : "{\n";
  size_t left = json.size();
  for (auto item = json.begin(); item != json.end(); ++item) {
    out += inner;
    if (json.is_object()) AppendJson(item.key(), inner, out), out += ": ";
    AppendJson(*item, inner, out);
    out += --left > 0 ? ",\n" : "\n";
  }
  out += indent + (json.is_array() ? "]" : "}");
}

}  // namespace

void AddCommonFlags(CLI::App& app, CommonFlags& flags) {
  app.add_option("--threads", flags.threads, "Threads to compute with (default: as many as this process may use)")
      ->type_name("N");
  app.add_option("--json", flags.json, "Write the machine-readable result to FILE; '-': to stdout, and nothing else there")
      ->type_name("FILE");
}

void SetExamples(CLI::App& app, const std::vector<Example>& examples) {
  std::string text = "Examples:\n";
  for (const Example& example : examples) text += fmt::format("  {}\n      {}\n", example.line, example.why);
  text.pop_back();
  app.footer(text);
}

std::optional<int> ParseFlags(CLI::App& app, int argc, char** argv) {
  app.get_formatter()->column_width(34);
  app.description(app.get_description() + "\n");
  try {
    app.parse(argc, argv);
    for (const CLI::Option* option : app.get_options()) {  // CLI11 would wrap around
      if (option->get_type_name() == "UINT" && Given(option).starts_with('-')) {
        throw CLI::ConversionError(option->get_name(), option->results());
      }
    }
    return std::nullopt;
  } catch (const CLI::CallForHelp&) {
    const auto written = WriteStdout(app.help());
    return written ? 0 : Fail(written.error());
  } catch (const CLI::ParseError& error) {
    return Fail(Translate(app, error));
  }
}

int Fail(const Error& error) {
  std::fflush(stdout);
  const std::string line = fmt::format("moe: {}\n", OneLine(error.Message()));
  std::fwrite(line.data(), 1, line.size(), stderr);
  return error.exit_code;
}

std::string_view Nearest(std::string_view got, const std::vector<std::string>& candidates) {
  std::string_view best;
  size_t best_edits = (got.size() + 2) / 3 + 1;  // more edits than this say nothing
  for (const std::string& candidate : candidates) {
    if (const size_t edits = EditDistance(got, candidate); edits < best_edits) best = candidate, best_edits = edits;
  }
  return best;
}

std::string JoinNames(const std::vector<std::string>& names) {
  return fmt::format("{}", fmt::join(names, ", "));
}

Status CheckJsonTarget(const CommonFlags& flags) {
  if (flags.json.empty() || flags.json_on_stdout()) return {};
  std::error_code ignored;
  if (std::filesystem::is_directory(flags.json, ignored)) return Err(flags.json, "got a folder, expected a file to write");
  const std::string folder = std::filesystem::path(flags.json).parent_path().string();
  if (::access(folder.empty() ? "." : folder.c_str(), W_OK | X_OK) != 0) return SystemErr(flags.json);
  return {};
}

Status CheckPageTarget(const CommonFlags& flags, const std::string& page) {
  if (page.empty()) return {};
  if (page == "-") return UsageErr("--out", "got '-', expected a file for the page");
  MOE_TRY(CheckJsonTarget({.json = page}));
  const auto whole = [](const std::string& path) { return std::filesystem::absolute(path).lexically_normal(); };
  if (!flags.json.empty() && whole(page) == whole(flags.json)) {
    return UsageErr("--out", "got {} for --json too, expected two files", page);
  }
  return {};
}

Status WriteJsonResult(const CommonFlags& flags, const nlohmann::json& result) {
  if (flags.json.empty()) return {};
  std::string text;
  AppendJson(result, "", text);
  text += '\n';
  if (flags.json_on_stdout()) {
    MOE_TRY(WriteStdout(text));
    return {};
  }
  struct stat info = {};
  const bool special = ::stat(flags.json.c_str(), &info) == 0 && !S_ISREG(info.st_mode);  // a pipe or /dev/null stays one
  if (!special) return WriteFileAtomically(flags.json, text);
  const int descriptor = ::open(flags.json.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor < 0) return SystemErr(flags.json);
  Status status = WriteAll(descriptor, text, flags.json);
  if (::close(descriptor) != 0 && status) status = SystemErr(flags.json);
  return status;
}

Result<bool> WriteStdout(std::string_view text) {
  std::fflush(stdout);
  while (!text.empty()) {
    const ssize_t n = ::write(STDOUT_FILENO, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EPIPE) return false;
    if (n < 0) return Err("stdout", "got '{}', expected to write there", std::strerror(errno));
    text.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

Result<std::unique_ptr<RunContext>> MakeRunContext(const CommonFlags& flags) {
  if (flags.threads < 0 || flags.threads > kMaxThreads) {
    return UsageErr("--threads", "got {}, expected 1 to {}, or 0 for all there are", flags.threads, kMaxThreads);
  }
  MOE_TRY(const KernelTable* table, SelectKernelTable());
  return std::make_unique<RunContext>(flags.threads > 0 ? flags.threads : GetCpuInfo().num_threads, *table);
}

}  // namespace moe
