#pragma once
// How many prompts to generate at once.

#include <cstdint>
#include <string>

#include "moe/costs/machine.h"
#include "moe/model/config.h"

namespace moe {

inline constexpr int64_t kUsualPromptsAtOnce = 8;    // where the machine is not known
inline constexpr int64_t kMostPromptsAtOnce = 1024;  // that are chosen by themselves

struct PromptsToRun {
  int64_t count = 1;            // prompts there are
  int64_t positions = 1;        // of the cache, that the longest may fill
  int64_t context = 0;          // past positions of a sequence in a usual step
  int64_t available_bytes = 0;  // that the model and its cache may take
};

struct PromptsAtOnce {
  int64_t count = 1;
  std::string why;  // one line
};

// The knee of the decode throughput predicted for the model: no doubling gives 10 % more tokens per second (KneeOf). No more
// than there are, and than memory holds the caches of; 1 if not even that fits. `machine` may be null: kUsualPromptsAtOnce.
PromptsAtOnce ChoosePromptsAtOnce(const ModelConfig& config, DType format, const PromptsToRun& prompts,
                                  const MachineProfile* machine);

}  // namespace moe
