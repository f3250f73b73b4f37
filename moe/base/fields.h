#pragma once
// What the value of a named setting may be. A struct's settings are listed once, name, member and range; readers, writers and
// comparisons walk the list.

#include <array>
#include <cstdint>
#include <limits>
#include <string_view>
#include <utility>

namespace moe {

struct WholeRange {
  int64_t least, most;
};
struct NumberRange {
  double least, most;
  bool open_below = false;  // least itself is out
  bool open_above = false;
};
template <class T, size_t n>
struct Choices {
  std::array<std::pair<std::string_view, T>, n> values;
};
template <class T, size_t n>
Choices(std::array<std::pair<std::string_view, T>, n>) -> Choices<T, n>;

inline constexpr int64_t kMostWhole = int64_t{1} << 40;
inline constexpr double kMostNumber = std::numeric_limits<double>::max();

}  // namespace moe
