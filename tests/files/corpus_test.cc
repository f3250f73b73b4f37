#include <gtest/gtest.h>

#include "testing/subprocess.h"
#include "testing/temp_dir.h"

namespace moe {
namespace {

TEST(Corpus, ScriptPassesItsOwnTests) {
  const test::RunResult result =
      test::RunProgram({"/usr/bin/python3", std::string(MOE_SOURCE_DIR) + "/scripts/corpus_test.py"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
}

TEST(Corpus, FaultsAreOneLine) {
  const test::TempDir folder;
  const std::string script = std::string(MOE_SOURCE_DIR) + "/scripts/corpus.py";
  const test::RunResult no_packages =
      test::RunProgram({"/usr/bin/python3", script, "--packages", "/nonexistent", "--out", folder / "data"});
  EXPECT_EQ(no_packages.exit_code, 1);
  EXPECT_EQ(no_packages.err,
            "corpus.py: [/nonexistent] got no bible-kjv_*.deb, expected one (from 'apt-get download bible-kjv')\n");
  const test::RunResult not_a_folder =
      test::RunProgram({"/usr/bin/python3", script, "--packages", "/nonexistent", "--out", "/dev/null"});
  EXPECT_EQ(not_a_folder.exit_code, 1);
  EXPECT_EQ(not_a_folder.err, "corpus.py: [/dev/null/debian-prose-1] Not a directory\n");
}

}  // namespace
}  // namespace moe
