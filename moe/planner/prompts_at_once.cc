#include "moe/planner/prompts_at_once.h"

#include <algorithm>
#include <vector>

#include "moe/base/progress.h"
#include "moe/model/model.h"
#include "moe/planner/predict.h"
#include "moe/planner/regimes.h"

namespace moe {
namespace {

constexpr int64_t kPrefillRows = 512;  // of GenerateOptions: activations are at least those of a prompt's step

// The most sequences that fit, up to `most`; memory grows with them.
int64_t MostThatFit(const ModelConfig& config, DType format, const PromptsToRun& prompts, int64_t most) {
  const auto fits = [&](int64_t n) {
    return InferenceMemory(config, format, std::max(kPrefillRows, n), n, prompts.positions).total() <= prompts.available_bytes;
  };
  int64_t low = 1, high = most;  // low: taken to fit
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    fits(middle) ? low = middle : high = middle - 1;
  }
  return low;
}

// Decode steps of every power of two.
struct Throughput {
  std::vector<int64_t> batches;
  std::vector<double> step_s, tokens_per_s;
};

Throughput Predicted(const ModelConfig& config, DType format, int64_t context, const MachineProfile& machine) {
  Throughput out;
  for (int64_t batch = 1; batch <= kMostPromptsAtOnce; batch *= 2) {
    const StepTime time =
        Predict({.config = config, .format = format}, {.phase = Phase::kDecode, .batch = batch, .context = context}, {machine});
    out.batches.push_back(batch), out.step_s.push_back(time.s);
    out.tokens_per_s.push_back(static_cast<double>(batch) / time.s);
  }
  return out;
}

PromptsAtOnce OfMachine(const ModelConfig& config, DType format, const PromptsToRun& prompts, const MachineProfile& machine) {
  const Throughput t = Predicted(config, format, std::max<int64_t>(prompts.context, 1), machine);
  const int64_t knee = KneeOf(t.batches, t.tokens_per_s).value_or(kMostPromptsAtOnce);
  const auto at = static_cast<size_t>(std::ranges::find(t.batches, knee) - t.batches.begin());
  const std::string of = fmt::format("profile of {}, {} thread{}", machine.date.empty() ? "unknown date" : machine.date,
                                     machine.threads, machine.threads == 1 ? "" : "s");
  std::string why;
  if (at + 1 < t.batches.size()) {
    const double gain = 100 * (t.tokens_per_s[at + 1] / t.tokens_per_s[at] - 1);
    why = fmt::format("from {} to {} throughput would {} {:.1f} % (less than 10 % more)", knee, 2 * knee,
                      gain < 0 ? "lose" : "gain", std::abs(gain));
  } else {
    why = fmt::format("throughput still grows at {}, the most that is chosen", knee);
  }
  return {knee, fmt::format("{}, a step of {} takes {}; {}", why, knee, FormatSeconds(t.step_s[at]), of)};
}

}  // namespace

PromptsAtOnce ChoosePromptsAtOnce(const ModelConfig& config, DType format, const PromptsToRun& prompts,
                                  const MachineProfile* machine) {
  PromptsAtOnce wanted{kUsualPromptsAtOnce, "as usual: there is no profile of this machine (moe probe makes one)"};
  if (machine != nullptr) wanted = OfMachine(config, format, prompts, *machine);
  const int64_t fit = MostThatFit(config, format, prompts, kMostPromptsAtOnce);
  const auto choice = [](int64_t count, std::string_view why) {
    return PromptsAtOnce{count, fmt::format("{} prompt{} at once: {}", count, count == 1 ? "" : "s", why)};
  };
  if (prompts.count <= std::min(wanted.count, fit)) return choice(prompts.count, "all there are");
  if (wanted.count <= fit) return choice(wanted.count, wanted.why);
  return choice(fit, fmt::format("the caches of more do not fit into {} of free memory",
                                 FormatBytes(static_cast<double>(prompts.available_bytes))));
}

}  // namespace moe
