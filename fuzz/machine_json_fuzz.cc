// Any bytes as a machine's profile, or (after a 'P') as a JSON merge patch on a built-in's: an error in one line, or a machine
// that is the same when it is written and read again, and of which no time is absurd.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "moe/base/check.h"
#include "moe/costs/machine_json.h"
#include "moe/costs/op_time.h"
#include "moe/files/json.h"

namespace {

void CheckTimes(const moe::MachineProfile& machine) {
  const moe::RowsOfMatrices rows[] = {{.matrices = 8, .rows = 3}};
  for (const moe::ProductCost& cost : machine.products) {
    const moe::ProductOp op{
        .format = cost.format, .kind = cost.kind, .N = 512, .K = 512, .bytes = 4e6, .reuse_bytes = 1e8, .rows = rows};
    const double s = moe::TimeOf(op, {machine}).s;
    MOE_CHECK(std::isfinite(s) && s > 0, "{} s of a product", s);
  }
  for (const bool backward : {false, true}) {
    const moe::AttentionOp op{.backward = backward, .heads = 8, .kv_heads = 2, .head_width = 64, .segments = 2, .rows = 5};
    const double s = moe::TimeOf(op, {machine}).s;
    MOE_CHECK(std::isfinite(s) && s > 0, "{} s of attention", s);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const nlohmann::json good = moe::JsonOf(moe::BuiltInMachine("a100-80g").value());
  const std::string text(reinterpret_cast<const char*>(data), size);
  const bool patch = text.starts_with('P');
  auto json = moe::ParseJson(std::string_view(text).substr(patch ? 1 : 0), "fuzz");
  if (!json) return 0;
  if (patch) {
    nlohmann::json patched = good;
    patched.merge_patch(*json);
    json = patched;
  }
  const auto machine = moe::MachineFromJson(*json, "fuzz");
  if (!machine) {
    MOE_CHECK(machine.error().Message().find('\n') == std::string::npos, "{}", machine.error().Message());
    return 0;
  }
  CheckTimes(*machine);
  const std::string written = moe::JsonOf(*machine).dump();
  const auto again = moe::MachineFromJson(nlohmann::json::parse(written), "fuzz");
  MOE_CHECK(again.has_value(), "{}", again ? "" : again.error().Message());
  MOE_CHECK(moe::JsonOf(*again).dump() == written, "{}", written);
  return 0;
}
