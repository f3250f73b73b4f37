// Any bytes as shapes to bench: an error in one line, or shapes whose text gives them back.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "moe/base/check.h"
#include "moe/planner/bench_shapes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto shapes = moe::ParseBenchShapes(text, "fuzz");
  if (!shapes) {
    // What it quotes of a line may hold anything but a line's end.
    MOE_CHECK(shapes.error().Message().find('\n') == std::string::npos, "{}", shapes.error().Message());
    return 0;
  }
  const auto again = moe::ParseBenchShapes(moe::ToText(*shapes), "fuzz");
  MOE_CHECK(again.has_value() && *again == *shapes, "{}", moe::ToText(*shapes));
  return 0;
}
