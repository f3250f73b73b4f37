#include "moe/files/text_file.h"

#include <gtest/gtest.h>

#include "testing/temp_dir.h"

namespace moe {
namespace {

TEST(TextFile, ReadsUtf8Unchanged) {
  const test::TempDir folder;
  const std::string text = "\xef\xbb\xbfline one\r\nh\xc3\xa9llo \xf0\x9f\x98\x80\n\n";
  test::WriteFile(folder / "a.txt", text);
  test::WriteFile(folder / "b.txt", "b");
  EXPECT_EQ(ReadTextFile(folder / "a.txt").value(), text);
  EXPECT_EQ(ReadTextFiles(std::vector{folder / "a.txt", folder / "b.txt"}).value(), (std::vector<std::string>{text, "b"}));
}

TEST(TextFile, EachFaultHasItsLine) {
  const test::TempDir folder;
  const auto message = [&](const std::string& name) { return ReadTextFile(folder / name).error().Message(); };
  EXPECT_EQ(message("none"), "[" + (folder / "none") + "] cannot open: No such file or directory");
  EXPECT_EQ(message(""), "[" + (folder / "") + "] cannot read: Is a directory");
  test::WriteFile(folder / "empty", "");
  EXPECT_EQ(message("empty"), "[" + (folder / "empty") + "] is empty, expected UTF-8 text");
  test::WriteFile(folder / "binary", std::string("ab\0\xff", 4));
  EXPECT_EQ(message("binary"), "[" + (folder / "binary") + "] is binary: got a NUL at byte 2, expected UTF-8 text");
  test::WriteFile(folder / "latin1", "caf\xe9 au lait");
  EXPECT_EQ(message("latin1"), "[" + (folder / "latin1") + "] is not UTF-8: got 0xe9 at byte 3, expected UTF-8 text");
  test::WriteFile(folder / "cut", "caf\xc3");
  EXPECT_EQ(message("cut"), "[" + (folder / "cut") + "] is not UTF-8: got 0xc3 at byte 3, expected UTF-8 text");
  test::WriteFile(folder / "good", "good");
  EXPECT_EQ(ReadTextFiles(std::vector{folder / "good", folder / "cut"}).error().where, folder / "cut");
}

}  // namespace
}  // namespace moe
