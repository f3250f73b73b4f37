#include "moe/cli/step_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>

#include "moe/base/interrupt.h"
#include "moe/base/progress.h"
#include "moe/planner/machine_cache.h"

namespace moe {

std::vector<std::string> SplitList(const std::string& text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ',') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  for (std::string& part : parts) {  // spaces around a part, not in it
    part.erase(part.find_last_not_of(' ') + 1);
    part.erase(0, std::min(part.find_first_not_of(' '), part.size()));
  }
  return parts;
}

Result<double> ParseScaled(const char* flag, const std::string& text, const Unit& unit) {
  constexpr double kMost = 1e24;
  const auto wrong = [&] { return UsageErr(flag, "got '{}', expected a number above 0, as in {}", text, unit.example); };
  const auto too_far = [&] { return UsageErr(flag, "got '{}', expected a number above 0 and below {:g}", text, kMost); };
  double value = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc::result_out_of_range) return too_far();
  if (error != std::errc()) return wrong();
  std::string suffix(rest, text.data() + text.size());
  std::erase(suffix, ' ');
  if (!unit.name.empty() && suffix.ends_with(unit.name)) {
    suffix.resize(suffix.size() - unit.name.size());
  } else if (unit.name == kRateUnit.name && suffix.ends_with('B')) {
    suffix.pop_back();
  }
  const bool binary = suffix.size() == 2 && suffix.back() == 'i' && unit.name.starts_with('B');
  if (binary) suffix.pop_back();
  if (suffix.size() > 1) return wrong();
  if (!suffix.empty()) {
    const char letter = suffix[0] == 'K' ? 'k' : suffix[0] == 'B' && unit.name.empty() ? 'G' : suffix[0];
    const size_t power = std::string_view("kMGTP").find(letter);
    if (power == std::string_view::npos) return wrong();
    value *= std::pow(binary ? 1024.0 : 1000.0, static_cast<double>(power + 1));
  }
  if (!(value > 0)) return wrong();
  if (value >= kMost) return too_far();
  return value;
}

Result<std::vector<int64_t>> ParseBatches(const std::string& text) {
  constexpr int64_t kMaxBatch = 65536;
  std::vector<int64_t> batches;
  for (const std::string& part : SplitList(text)) {
    int64_t batch = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), batch);
    if (error != std::errc() || end != part.data() + part.size() || batch < 1 || batch > kMaxBatch) {
      return UsageErr("--batches", "got '{}', expected numbers from 1 to {} with commas between them", part, kMaxBatch);
    }
    batches.push_back(batch);
  }
  std::sort(batches.begin(), batches.end());
  batches.erase(std::unique(batches.begin(), batches.end()), batches.end());
  return batches;
}

Result<Phase> ParsePhase(const std::string& text) {
  for (const Phase phase : {Phase::kDecode, Phase::kPrefill, Phase::kTrain}) {
    if (text == Name(phase)) return phase;
  }
  return UsageErr("--phase", "got '{}', expected decode, prefill or train", text);
}

Result<SweepRouting> ParseRouting(const std::string& text, bool model) {
  if (model && text == "model") return SweepRouting{};
  if (text == "uniform") return SweepRouting{SweepRouting::kUniform};
  constexpr std::string_view kZipf = "zipf:";
  constexpr double kMost = 10;
  SweepRouting out{SweepRouting::kZipf};
  const char* end = text.data() + text.size();
  if (text.starts_with(kZipf)) {
    const auto [rest, error] = std::from_chars(text.data() + kZipf.size(), end, out.s);
    if (error == std::errc() && rest == end && out.s >= 0 && out.s <= kMost) return out;
  }
  return UsageErr("--routing", "got '{}', expected {}zipf:S with S from 0 to 10", text,
                  model ? "model, uniform, or " : "uniform or ");
}

Status CheckRouting(const ModelConfig& config, const SweepRouting& routing) {
  if (routing.kind != SweepRouting::kZipf || config.has_experts()) return {};
  return UsageErr("--routing", "got zipf:{:g} for a dense model, expected one with experts", routing.s);
}

Status RefuseEmpty(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() == 0 || option->get_expected_max() == 0) continue;
    if (std::ranges::any_of(option->results(), [](const std::string& value) { return value.empty(); })) {
      return UsageErr(option->get_name(), "got '', expected a value");
    }
  }
  return {};
}

Result<MachineProfile> LoadMachine(const std::string& machine, ExecContext& ctx) {
  InstallInterruptHandler();
  ProgressLine line;
  const auto say = [&](const std::string& text) { line.Print(text); };
  const auto progress = [&](double share) {
    if (line.Due()) line.Update(fmt::format("{} measuring this machine", ProgressBar(share, 20)));
  };
  auto loaded = LoadOrProbe({.machine = machine, .cache = MachineCachePath(), .say = say, .progress = progress}, ctx);
  line.Finish();
  return loaded;
}

}  // namespace moe
