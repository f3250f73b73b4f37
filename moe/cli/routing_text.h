#pragma once
// A routing policy in words.

#include <string>

#include "moe/mixture/router_config.h"

namespace moe {

// One line: "softmax over 8 experts, the 2 largest, renormalised; dropless", and whatever else the policy says.
std::string RoutingText(const RouterConfig& router);

}  // namespace moe
