#pragma once
// moe plan --data: the routing that the model's own routers show on a text.

#include <memory>
#include <string>
#include <vector>

#include "moe/planner/measured_routing.h"

namespace moe {

struct PlanRoutingFlags {
  std::vector<std::string> data;  // empty: nothing is measured
  int64_t tokens = 1 << 14;
};

// Loads the model and runs it over the text, in windows of `context` tokens or more, with a progress line on stderr. Null: it
// was stopped by Ctrl-C, which is said there. Errors: a dense model; of the folder, its weights, and the text.
Result<std::shared_ptr<const MeasuredRouting>> MeasureRoutingOf(const std::string& model, const PlanRoutingFlags& flags,
                                                                int64_t context, ExecContext& ctx);

}  // namespace moe
