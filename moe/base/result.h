#pragma once
// Result<T>: a value, or one line that says what was wrong with a file, a flag or the machine.

#include <fmt/format.h>

#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace moe {

// Shown as "[where] what". `where` names the thing (a file, a flag, a key); `what` says "got X, expected Y" in one line.
struct Error {
  std::string where;
  std::string what;
  int exit_code = 1;  // 1 failed, 2 wrong usage

  std::string Message() const { return fmt::format("[{}] {}", where.empty() ? "''" : where, what); }
};

template <class T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

template <class... Args>
tl::unexpected<Error> Err(std::string where, fmt::format_string<Args...> format, Args&&... args) {
  return tl::make_unexpected(Error{std::move(where), fmt::format(format, std::forward<Args>(args)...)});
}

template <class... Args>
tl::unexpected<Error> UsageErr(std::string where, fmt::format_string<Args...> format, Args&&... args) {
  return tl::make_unexpected(Error{std::move(where), fmt::format(format, std::forward<Args>(args)...), 2});
}

}  // namespace moe

#define MOE_CONCAT_INNER(a, b) a##b
#define MOE_CONCAT(a, b) MOE_CONCAT_INNER(a, b)

// MOE_TRY(expr);            returns from the function on error
// MOE_TRY(auto x, expr);    ... and binds the value otherwise
#define MOE_TRY_1(expr)                                                                                               \
  do {                                                                                                                \
    if (auto moe_try_result = (expr); !moe_try_result) return tl::make_unexpected(std::move(moe_try_result.error())); \
  } while (0)
#define MOE_TRY_2(declaration, expr)                                                                                  \
  auto MOE_CONCAT(moe_try_, __LINE__) = (expr);                                                                       \
  if (!MOE_CONCAT(moe_try_, __LINE__)) return tl::make_unexpected(std::move(MOE_CONCAT(moe_try_, __LINE__).error())); \
  declaration = std::move(*MOE_CONCAT(moe_try_, __LINE__))
#define MOE_TRY_PICK(_1, _2, name, ...) name
#define MOE_TRY(...) MOE_TRY_PICK(__VA_ARGS__, MOE_TRY_2, MOE_TRY_1, )(__VA_ARGS__)
