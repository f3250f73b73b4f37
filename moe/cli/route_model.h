#pragma once
// moe route --model: what a model's routers do with a text.

#include <optional>
#include <string>
#include <vector>

#include "moe/cli/common.h"

namespace CLI {
class Option;
}

namespace moe {

struct RouteModelFlags {
  std::string model, dtype, out;
  std::vector<std::string> data;
  std::vector<int64_t> layers;
  std::optional<int64_t> batch, context;
  int64_t tokens = 1 << 16, likes = 10, least_count = 8;
  double seconds = 4;
};
// Its own flags, --model first. Returns the others: they mean nothing without it.
std::vector<const CLI::Option*> AddRouteModelFlags(CLI::App& app, RouteModelFlags& flags);

// What both forms of the command have.
struct RoutePolicyFlags {
  std::vector<std::string> policies;  // empty: the form's own
  bool evaluation = false;
  int64_t seed = 1;
};
// "--policy", and of several which.
std::string PolicyPlace(const RoutePolicyFlags& flags, const std::string& policy);
Result<int> RouteModel(const RouteModelFlags& flags, const RoutePolicyFlags& policy, const CommonFlags& common);

}  // namespace moe
