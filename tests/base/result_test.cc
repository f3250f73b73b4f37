#include "moe/base/result.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "moe/base/check.h"
#include "testing/matchers.h"

namespace moe {
namespace {

Result<int> Half(int x) {
  if (x % 2 != 0) return Err("half", "got {}, expected an even number", x);
  return x / 2;
}

Result<int> Quarter(int x) {
  MOE_TRY(const int half, Half(x));
  MOE_TRY(auto quarter, Half(half));
  return quarter;
}

Status BothEven(int a, int b) {
  MOE_TRY(Half(a));
  MOE_TRY(Half(b));
  return {};
}

Result<std::unique_ptr<int>> Owned(int x) {
  MOE_TRY(auto half, Half(x));
  return std::make_unique<int>(half);
}

TEST(Result, TryBindsValuesAndPassesErrorsOn) {
  EXPECT_EQ(Quarter(12).value(), 3);
  EXPECT_EQ(Quarter(3).error().Message(), "[half] got 3, expected an even number");
  EXPECT_EQ(Quarter(6).error().what, "got 3, expected an even number");
  EXPECT_TRUE(BothEven(2, 4).has_value());
  EXPECT_EQ(BothEven(2, 5).error().what, "got 5, expected an even number");
}

TEST(Result, TryMovesWhatCannotBeCopied) {
  const auto twice = [](int x) -> Result<int> {
    MOE_TRY(auto owned, Owned(x));
    MOE_TRY(const std::unique_ptr<int> again, Owned(*owned));
    return *again;
  };
  EXPECT_EQ(twice(8).value(), 2);
  EXPECT_FALSE(twice(2).has_value());
}

TEST(Result, ErrorsCarryTheExitCode) {
  const Status failed = Err("file", "missing"), usage = UsageErr("--threads", "got {}, expected at least {}", 0, 1);
  EXPECT_EQ(failed.error().exit_code, 1);
  EXPECT_EQ(usage.error().exit_code, 2);
  EXPECT_EQ(usage.error().Message(), "[--threads] got 0, expected at least 1");
}

TEST(Check, NamesConditionPlaceAndValues) {
  const test::ThrowingChecks guard;
  const int a = 1, b = 2;
  MOE_CHECK(a < b);
  try {
    MOE_CHECK(a == b, "a {} b {}", a, b);
    FAIL();
  } catch (const test::CheckError& error) {
    EXPECT_NE(error.message.find("result_test.cc:"), std::string::npos) << error.message;
    EXPECT_NE(error.message.find("MOE_CHECK(a == b) failed. a 1 b 2"), std::string::npos) << error.message;
  }
  EXPECT_THROW(MOE_CHECK(a > b), test::CheckError);
}

TEST(Check, EvaluatesItsConditionOnceAndItsValuesOnlyOnFailure) {
  int conditions = 0, values = 0;
  MOE_CHECK(++conditions > 0, "{}", ++values);
  EXPECT_EQ(conditions, 1);
  EXPECT_EQ(values, 0);
}

TEST(Check, DebugChecksAreGoneInReleaseBuilds) {
  const test::ThrowingChecks guard;
#ifdef NDEBUG
  EXPECT_NO_THROW(MOE_DCHECK(false, "{}", 1));
#else
  EXPECT_THROW(MOE_DCHECK(false, "{}", 1), test::CheckError);
#endif
}

TEST(CheckDeathTest, AbortsByDefaultAndWhenTheHandlerReturns) {
  EXPECT_DEATH(MOE_CHECK(false, "value {}", 7), "MOE_CHECK\\(false\\) failed. value 7");
  EXPECT_DEATH(
      {
        SetCheckHandler([](const std::string&) {});
        CheckFailed("file", 1, "condition", "");
      },
      "");
}

}  // namespace
}  // namespace moe
