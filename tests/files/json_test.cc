#include "moe/files/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "moe/files/utf8.h"
#include "testing/temp_dir.h"

namespace moe {
namespace {

TEST(Json, StrictWithOneLineErrors) {
  EXPECT_EQ(ParseJson(R"( {"a": [1, 2.5, "x"], "b": {"a": null}} )", "f")->dump(), R"({"a":[1,2.5,"x"],"b":{"a":null}})");
  const auto message = [](std::string_view text) { return ParseJson(text, "f").error().Message(); };
  EXPECT_EQ(message(""), "[f] is not JSON: broken at byte 1 of 0");
  EXPECT_EQ(message("[1,]"), "[f] is not JSON: broken at byte 4 of 4");
  EXPECT_EQ(message("[1] x"), "[f] is not JSON: broken at byte 5 of 5");
  EXPECT_EQ(message("// no comments\n1"), "[f] is not JSON: broken at byte 1 of 16");
  EXPECT_EQ(message("\"\xff\""), "[f] is not JSON: broken at byte 2 of 3");
  EXPECT_EQ(message("1e999"), "[f] is not JSON: a number is out of range");
  EXPECT_EQ(message(R"({"a": {"x": 1, "x": 2}})"), "[f] is not JSON we accept: key 'x' appears twice");
  EXPECT_TRUE(ParseJson(R"({"a": {"x": 1}, "b": {"x": 2}})", "f"));
  EXPECT_TRUE(ParseJson(std::string(60, '[') + std::string(60, ']'), "f"));
  EXPECT_EQ(message(std::string(200'000, '[')), "[f] is not JSON we accept: nested more than 64 levels deep");
}

TEST(Json, LoadsFiles) {
  const test::TempDir folder;
  test::WriteFile(folder / "a.json", "{\"k\": 3}");
  EXPECT_EQ((*LoadJson(folder / "a.json"))["k"], 3);
  EXPECT_EQ(LoadJson(folder / "b.json").error().Message(),
            "[" + (folder / "b.json") + "] cannot open: No such file or directory");
}

TEST(Json, PrintableNamesFitALine) {
  EXPECT_EQ(Printable("layers.0.w\n\x1b[31m\xc3\xa9"), "layers.0.w\\x0a\\x1b[31m\xc3\xa9");
  EXPECT_EQ(Printable(std::string(120, 'x')), std::string(120, 'x'));
  EXPECT_EQ(Printable(std::string(121, 'x')), std::string(120, 'x') + "...");
  for (size_t ascii = 100; ascii < 125; ++ascii) {
    const std::string shown =
        Printable(std::string(ascii, 'x') + "\xf0\x9f\x98\x80\xf0\x9f\x98\x80\xf0\x9f\x98\x80\xf0\x9f\x98\x80");
    EXPECT_EQ(ValidUtf8Prefix(shown), shown.size()) << ascii;
  }
}

}  // namespace
}  // namespace moe
