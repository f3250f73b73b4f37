#include "moe/planner/bench_shapes.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "moe/files/text_file.h"

namespace moe {
namespace {

void ExpectError(const std::string& text, const std::string& message) {
  const auto shapes = ParseBenchShapes(text, "f.txt");
  ASSERT_FALSE(shapes.has_value()) << text;
  EXPECT_EQ(shapes.error().Message(), message);
}

TEST(BenchShapes, ReadsEveryKindPastCommentsAndSpace) {
  const auto shapes = ParseBenchShapes(
      "# a model\r\n\n  gemm 256 1024\t2048 # wide\nmoe 512 128 256 8 2\nsparse 512 256 3\nattention 1024 8 2 64\nadamw "
      "1000\ngemm 1 2 3",
      "f.txt");
  ASSERT_TRUE(shapes.has_value()) << shapes.error().Message();
  EXPECT_EQ(shapes->gemm, (std::vector<GemmShape>{{256, 1024, 2048}, {1, 2, 3}}));
  EXPECT_EQ(shapes->moe, (std::vector<MoeShape>{{512, 128, 256, 8, 2}}));
  EXPECT_EQ(shapes->sparse, (std::vector<GemmShape>{{512, 256, 3}}));
  EXPECT_EQ(shapes->attention, (std::vector<AttentionBenchShape>{{1024, 8, 2, 64}}));
  EXPECT_EQ(shapes->adamw, std::vector<int64_t>{1000});
  EXPECT_EQ(ParseBenchShapes(ToText(*shapes), "again"), *shapes);
}

TEST(BenchShapes, AShapeGivenTwiceIsMeasuredOnce) {
  EXPECT_EQ(ParseBenchShapes("gemm 1 2 3\ngemm 3 2 1\ngemm 1 2 3\nadamw 7\nadamw 7\n", "f")->gemm.size(), 2u);
}

TEST(BenchShapes, ErrorsNameFileAndLine) {
  ExpectError("", "[f.txt] got no shape, expected lines such as 'gemm 1024 2048 2048'");
  ExpectError("# nothing\n\n", "[f.txt] got no shape, expected lines such as 'gemm 1024 2048 2048'");
  ExpectError("gemm 1 2 3\n\nGEMM 1 2 3", "[f.txt:3] got 'GEMM', expected gemm, moe, sparse, attention or adamw");
  ExpectError("gemm 1 2", "[f.txt:1] got 2 numbers, expected 'gemm M N K'");
  ExpectError("adamw 1 2", "[f.txt:1] got 2 numbers, expected 'adamw VALUES'");
  ExpectError("gemm 1 0 3", "[f.txt:1] got N = '0', expected a whole number from 1 to 1048576");
  ExpectError("gemm 1 -2 3", "[f.txt:1] got N = '-2', expected a whole number from 1 to 1048576");
  ExpectError("gemm 1 2 3x", "[f.txt:1] got K = '3x', expected a whole number from 1 to 1048576");
  ExpectError("gemm 1 2 1e3", "[f.txt:1] got K = '1e3', expected a whole number from 1 to 1048576");
  ExpectError("gemm 1048577 2 3", "[f.txt:1] got M = '1048577', expected a whole number from 1 to 1048576");
  ExpectError("gemm 99999999999999999999 2 3",
              "[f.txt:1] got M = '99999999999999999999', expected a whole number from 1 to 1048576");
  ExpectError("moe 1 8 16 4 2", "[f.txt:1] got D = 8, expected a multiple of 16");
  ExpectError("moe 1 16 24 4 2", "[f.txt:1] got F = 24, expected a multiple of 16");
  ExpectError("moe 1 16 16 4 5", "[f.txt:1] got k = 5, expected at most E = 4");
  ExpectError("moe 1048576 16 16 4096 4096", "[f.txt:1] got T k = 4294967296, expected at most 1073741824");
  ExpectError("sparse 128 256 1", "[f.txt:1] got M = 128, expected a multiple of 256");
  ExpectError("sparse 256 16 1", "[f.txt:1] got N = 16, expected a multiple of 256");
  ExpectError("sparse 256 256", "[f.txt:1] got 2 numbers, expected 'sparse M N K'");
  ExpectError("sparse 1048576 1048576 1", "[f.txt:1] got M N = 1099511627776, expected at most 68719476736");
  ExpectError("attention 16 4 3 64", "[f.txt:1] got G = 3, expected a divisor of H = 4");
  ExpectError("attention 16 4 2 63", "[f.txt:1] got P = 63, expected a multiple of 2");
  ExpectError(std::string(100, 'x'),
              "[f.txt:1] got '" + std::string(40, 'x') + "...', expected gemm, moe, sparse, attention or adamw");
}

TEST(BenchShapes, DefaultsHaveSomethingForEverySubject) {
  const BenchShapes shapes = DefaultBenchShapes();
  EXPECT_GT(shapes.gemm.size(), 3u);
  EXPECT_FALSE(shapes.moe.empty());
  EXPECT_FALSE(shapes.attention.empty());
  EXPECT_FALSE(shapes.adamw.empty());
}

TEST(BenchShapes, EveryFileOfTheTreeIsRight) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(MOE_SOURCE_DIR) / "benches/shapes")) {
    SCOPED_TRACE(entry.path());
    const auto text = ReadTextFile(entry.path().string());
    ASSERT_TRUE(text.has_value());
    const auto shapes = ParseBenchShapes(*text, entry.path().string());
    ASSERT_TRUE(shapes.has_value()) << shapes.error().Message();
    EXPECT_EQ(ParseBenchShapes(ToText(*shapes), "again"), *shapes);
    ++files;
  }
  EXPECT_GE(files, 13);
}

}  // namespace
}  // namespace moe
