#pragma once
// MOE_CHECK is for our own bugs: a broken promise between two of our functions. Bad files, flags or requests are the world's
// fault and return a Result instead; they must never get here.

#include <fmt/format.h>

#include <string>

namespace moe {

using CheckHandler = void (*)(const std::string& message);

// Called before the program aborts. Embedders and tests may replace it, e.g. by one that throws. Returns the previous handler.
CheckHandler SetCheckHandler(CheckHandler handler);

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition, const std::string& detail);

}  // namespace moe

// MOE_CHECK(a == b) or MOE_CHECK(a == b, "a {} b {}", a, b)
#define MOE_CHECK(condition, ...)                                                                        \
  do {                                                                                                   \
    if (!(condition)) [[unlikely]]                                                                       \
      ::moe::CheckFailed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_OPT__(" ") __VA_ARGS__)); \
  } while (0)

#ifdef NDEBUG
#define MOE_DCHECK(condition, ...) \
  do {                             \
  } while (0)
#else
#define MOE_DCHECK(condition, ...) MOE_CHECK(condition __VA_OPT__(, ) __VA_ARGS__)
#endif
