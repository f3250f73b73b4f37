#pragma once
// A routing policy in config.json: an object of VisitRouter's fields by name.

#include <nlohmann/json.hpp>
#include <string>

#include "moe/mixture/router_config.h"

namespace moe {

// The fields in which `config` differs from `base`.
nlohmann::ordered_json RouterJson(const RouterConfig& config, const RouterConfig& base);
// Sets the fields that `object` has; an unknown one is an error. The result is not validated.
Status ReadRouterJson(const nlohmann::json& object, const std::string& where, RouterConfig& config);

}  // namespace moe
