#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "testing/temp_dir.h"
#include "tests/cli/run_moe.h"

namespace moe::test {
namespace {

using nlohmann::json;

// The machine's ceilings are probed even for one case of nothing: a second or so, less in a small buffer.
TEST(Bench, PrintsATableAndWritesJson) {
  const TempDir dir;
  const std::string shapes = dir / "shapes.txt", out = dir / "bench.json";
  WriteFile(shapes, "gemm 96 32 32\n");
  const RunResult result = RunMoe({"bench", "gemm", "--seconds", "0", "--buffer", "16", "--shapes", shapes, "--threads", "2",
                                   "--dtype", "f32", "--filter", "d", "--json", out});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* part : {"2 threads", "dense/f32/96x32x32", "backward/dX/f32/96x32x32", "of forward", "fraction:", "least"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << " in\n" << result.out;
  }
  const json j = json::parse(ReadFile(out));
  EXPECT_EQ(j["ceilings"]["threads"], 2);
  EXPECT_GT(j["ceilings"]["peak_flop_per_s"]["f32"].get<double>(), 0);
  EXPECT_GT(j["ceilings"]["read_bytes_per_s"].get<double>(), 0);
  EXPECT_FALSE(j["interrupted"].get<bool>());
  ASSERT_EQ(j["cases"].size(), 3u);
  for (const json& c : j["cases"]) {
    SCOPED_TRACE(c.dump());
    EXPECT_GT(c["flop_per_s"].get<double>(), 0);
    EXPECT_GT(c["fraction"].get<double>(), 0);
    EXPECT_GE(c["rounds"].get<int>(), 3);
    EXPECT_FALSE(c.contains("peer"));
    EXPECT_EQ(c.contains("reference_ratio"), c["group"] == "backward");
  }
}

TEST(Bench, EverySubjectHasACase) {
  const TempDir dir;
  const std::string shapes = dir / "shapes.txt";
  WriteFile(shapes, "gemm 32 32 32\nmoe 64 32 16 4 2\nattention 32 2 1 16\nadamw 4096\n");
  const std::vector<std::array<std::string, 3>> cases = {{"moe", "router/bf16/layer/T64.D32.F16.E4.k2", "flop_per_s"},
                                                         {"attention", "attention/bf16/prefill/C32.H2.G1.P16", "flop_per_s"},
                                                         {"optimizer", "adamw/bf16/packs/4096", "bytes_per_s"}};
  for (const auto& [subject, name, rate] : cases) {
    const RunResult result = RunMoe({"bench", subject, "--seconds", "0", "--buffer", "16", "--shapes", shapes, "--threads", "1",
                                     "--filter", name, "--json", "-"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const json j = json::parse(result.out);  // and nothing else
    ASSERT_EQ(j["cases"].size(), 1u);
    const json& c = j["cases"][0];
    EXPECT_EQ(c["group"].get<std::string>() + "/" + c["name"].get<std::string>(), name);
    EXPECT_GT(c[rate].get<double>(), 0);
    EXPECT_GT(c["fraction"].get<double>(), 0);
  }
}

TEST(Bench, WhatDoesNotFitIntoMemoryIsLeftOutAndNamed) {
  const TempDir dir;
  const std::string shapes = dir / "shapes.txt";
  WriteFile(shapes, "gemm 96 32 32\ngemm 1048576 1048576 1048576\n");
  const RunResult result =
      RunMoe({"bench", "gemm", "--seconds", "0", "--buffer", "16", "--shapes", shapes, "--filter", "dense", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json j = json::parse(result.out);
  EXPECT_EQ(j["cases"].size(), 1u);
  EXPECT_EQ(j["skipped"], json::array({"dense/bf16/1048576x1048576x1048576"}));
}

TEST(Bench, HelpHasALineForEverySubject) {
  const RunResult result = RunMoe({"bench", "--help"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* subject : {"gemm", "moe", "attention", "optimizer"}) {
    EXPECT_NE(result.out.find(fmt::format("          {}: ", subject)), std::string::npos) << subject << " in\n" << result.out;
  }
}

TEST(Bench, ScalingIsOneCommand) {
  const TempDir dir;
  const std::string shapes = dir / "shapes.txt";
  WriteFile(shapes, "moe 64 32 16 4 2\n");
  const RunResult result = RunMoe({"bench", "moe", "--seconds", "0", "--buffer", "16", "--shapes", shapes, "--threads", "2",
                                   "--filter", "grouped/bf16/scaling", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json j = json::parse(result.out);
  ASSERT_EQ(j["cases"].size(), 1u);
  const json& c = j["cases"][0];
  EXPECT_EQ(c["reference"], "one thread");
  for (const char* key : {"reference_ratio", "speedup", "ceiling_speedup"}) EXPECT_GT(c[key].get<double>(), 0) << key;
}

TEST(Bench, ADecodeHasBothBounds) {
  const TempDir dir;
  const std::string shapes = dir / "shapes.txt";
  WriteFile(shapes, "gemm 64 512 512\n");
  const RunResult result =
      RunMoe({"bench", "gemm", "--seconds", "0", "--buffer", "16", "--shapes", shapes, "--threads", "1", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json c = json::parse(result.out)["cases"][0];
  EXPECT_EQ(c["group"], "decode");
  EXPECT_EQ(c["kind"], "17 rows and more");
  EXPECT_GT(c["bounds_s"]["chunk_read"].get<double>(), 0);
  EXPECT_GT(c["bounds_s"]["peak"].get<double>(), 0);
  EXPECT_GE(c["bounds_differ"].get<double>(), 1);
}

TEST(Bench, BadInputIsOneLine) {
  const TempDir dir;
  const std::string wrong = dir / "wrong.txt", other = dir / "other.txt";
  WriteFile(wrong, "gemm 1 2 3\ngemm 4 5\n");
  WriteFile(other, "adamw 100\n");
  ExpectFails(RunMoe({"bench"}), 2, "SUBJECT", "got nothing, expected one of gemm");
  ExpectFails(RunMoe({"bench", "fft"}), 2, "SUBJECT", "got 'fft', expected one of gemm");
  ExpectFails(RunMoe({"bench", "gemm", "--seconds", "-1"}), 2, "--seconds", "got -1");
  ExpectFails(RunMoe({"bench", "gemm", "--seconds", "nan"}), 2, "--seconds", "got nan");
  ExpectFails(RunMoe({"bench", "gemm", "--buffer", "0"}), 2, "--buffer", "got 0, expected 16 to");
  ExpectFails(RunMoe({"bench", "gemm", "--dtype", "f64"}), 2, "--dtype", "got 'f64', expected bf16 or f32");
  ExpectFails(RunMoe({"bench", "gemm", "--filter", "nothing"}), 2, "--filter", "got 'nothing'");
  ExpectFails(RunMoe({"bench", "gemm", "--shapes", "/nowhere.txt"}), 1, "/nowhere.txt", "No such file");
  ExpectFails(RunMoe({"bench", "gemm", "--shapes", ""}), 2, "--shapes", "got '', expected a file");
  ExpectFails(RunMoe({"bench", "gemm", "--shapes", wrong}), 1, wrong + ":2", "got 2 numbers, expected 'gemm M N K'");
  ExpectFails(RunMoe({"bench", "gemm", "--shapes", other}), 1, other, "expected lines that begin with gemm");
  ExpectFails(RunMoe({"bench", "gemm", "--json", "/nowhere/x.json"}), 1, "/nowhere/x.json", "expected");
  ExpectFails(RunMoe({"bench", "gemm", "extra"}), 2, "arguments", "got 'extra'");
}

}  // namespace
}  // namespace moe::test
