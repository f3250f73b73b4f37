#include "moe/base/edit_distance.h"

#include <gtest/gtest.h>

#include <string>

#include "moe/base/rng.h"

namespace moe {
namespace {

// The definition, without a table.
size_t Naive(std::string_view a, std::string_view b) {
  if (a.empty() || b.empty()) return a.size() + b.size();
  const size_t replaced = Naive(a.substr(1), b.substr(1)) + (a[0] == b[0] ? 0 : 1);
  return std::min({replaced, Naive(a.substr(1), b) + 1, Naive(a, b.substr(1)) + 1});
}

TEST(EditDistance, Examples) {
  EXPECT_EQ(EditDistance("", ""), 0u);
  EXPECT_EQ(EditDistance("", "abc"), 3u);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3u);
  EXPECT_EQ(EditDistance("train.lr", "train.rl"), 2u);
}

TEST(EditDistance, FollowsTheDefinition) {
  for (uint32_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const auto word = [&] {
      std::string w(static_cast<size_t>(rng.Below(6)), ' ');
      for (char& c : w) c = static_cast<char>('a' + rng.Below(3));
      return w;
    };
    const std::string a = word(), b = word();
    EXPECT_EQ(EditDistance(a, b), Naive(a, b)) << a << " " << b;
  }
}

}  // namespace
}  // namespace moe
