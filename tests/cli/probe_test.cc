#include <nlohmann/json.hpp>

#include "testing/temp_dir.h"
#include "tests/cli/run_moe.h"

namespace moe::test {
namespace {

using nlohmann::json;

TEST(Probe, PrintsATableAndWritesTheSameJsonTwice) {
  const TempDir dir;
  const std::string out = dir / "machine.json", other = dir / "other.json";
  const RunResult result = RunMoe({"probe", "--seconds", "0", "--threads", "2", "--out", out, "--json", other});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* word : {"read, 4 MiB chunks", "read-modify-write", "bf16", "int8", "barrier", "GFLOP/s"}) {
    EXPECT_NE(result.out.find(word), std::string::npos) << word << " in\n" << result.out;
  }
  const json j = json::parse(ReadFile(out));
  EXPECT_EQ(j, json::parse(ReadFile(other)));
  EXPECT_EQ(j["threads"], 2);
  EXPECT_FALSE(j["cpu"].get<std::string>().empty());
  EXPECT_FALSE(j["isa"].get<std::string>().empty());
  ASSERT_EQ(j["by_threads"].size(), 2u);
  for (const char* key : {"read_bytes_per_s", "chunk_read_bytes_per_s", "rmw_bytes_per_s", "barrier_s"}) {
    EXPECT_GT(j[key].get<double>(), 0) << key;
    EXPECT_EQ(j[key], j["by_threads"][1][key]) << key;
  }
  for (const char* key : {"f32", "bf16", "int8"}) EXPECT_GT(j["peak_flop_per_s"][key].get<double>(), 0) << key;
}

TEST(Probe, BadInputIsOneLine) {
  ExpectFails(RunMoe({"probe", "--seconds", "-1"}), 2, "--seconds", "got -1");
  ExpectFails(RunMoe({"probe", "--seconds", "nan"}), 2, "--seconds", "got nan");
  ExpectFails(RunMoe({"probe", "--out", "-"}), 2, "--out", "expected a file");
  ExpectFails(RunMoe({"probe", "--out", "/nowhere/machine.json"}), 1, "/nowhere/machine.json", "expected");
  ExpectFails(RunMoe({"probe", "extra"}), 2, "arguments", "got 'extra'");
}

}  // namespace
}  // namespace moe::test
