#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "testing/temp_dir.h"
#include "tests/cli/run_moe.h"

namespace moe::test {
namespace {

using nlohmann::json;

TEST(Probe, PrintsATableAndWritesTheSameJsonTwice) {
  const TempDir dir;
  const std::string out = dir / "machine.json", other = dir / "other.json";
  const RunResult result =
      RunMoe({"probe", "--seconds", "0", "--buffer", "16", "--threads", "2", "--out", out, "--json", other});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* word : {"read, 4 MiB chunks", "read-modify-write", "bf16", "int8", "barrier", "GFLOP/s", "weight_grad"}) {
    EXPECT_NE(result.out.find(word), std::string::npos) << word << " in\n" << result.out;
  }
  const json j = json::parse(ReadFile(out));
  EXPECT_EQ(j, json::parse(ReadFile(other)));
  EXPECT_EQ(j["threads"], 2);
  EXPECT_FALSE(j["cpu"].get<std::string>().empty());
  EXPECT_FALSE(j["isa"].get<std::string>().empty());
  ASSERT_EQ(j["by_threads"].size(), 2u);
  EXPECT_EQ(j["weights_by_working_set"].back()["bytes"], 16 << 20);
  for (const char* key : {"read_bytes_per_s", "chunk_read_bytes_per_s", "rmw_bytes_per_s", "barrier_s"}) {
    EXPECT_GT(j[key].get<double>(), 0) << key;
    EXPECT_EQ(j[key], j["by_threads"][1][key]) << key;
  }
  for (const char* key : {"f32", "bf16", "int8"}) EXPECT_GT(j["peak_flop_per_s"][key].get<double>(), 0) << key;
}

TEST(Probe, KeepsTheProfileWherePlansLookForIt) {
  const TempDir dir;
  const std::string cache = dir / "deeper/machine.json";
  const RunResult result =
      RunMoe({"probe", "--seconds", "0", "--buffer", "16", "--threads", "1"}, {.environment = {{"MOE_MACHINE_CACHE", cache}}});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out.find("Kept in " + cache + "\n"), std::string::npos) << result.out;
  const json j = json::parse(ReadFile(cache));
  EXPECT_EQ(j["threads"], 1);
  EXPECT_EQ(j["date"].get<std::string>().size(), 10u);
  EXPECT_FALSE(j["version"].get<std::string>().empty());
  for (const char* dtype : {"f32", "bf16"}) {
    for (const char* product : {"linear", "gate_up", "down", "weight_grad"}) {
      const auto of = [&](const json& entry) { return entry["dtype"] == dtype && entry["product"] == product; };
      EXPECT_GT(std::count_if(j["gamma"].begin(), j["gamma"].end(), of), 4) << dtype << ' ' << product;
    }
  }
  for (const json& entry : j["gamma"]) EXPECT_GT(entry["flop_per_s"].get<double>(), 1e6) << entry;
}

TEST(Probe, InterruptedKeepsNothing) {
  const TempDir dir;
  const std::string cache = dir / "machine.json", result_file = dir / "result.json";
  Subprocess process({MOE_BINARY, "probe", "--seconds", "600", "--buffer", "16", "--json", result_file},
                     {.environment = {{"MOE_MACHINE_CACHE", cache}}});
  ASSERT_TRUE(process.WaitForOutput("measuring this machine"));
  process.Signal(SIGINT);
  const RunResult result = process.Wait();
  EXPECT_EQ(result.exit_code, 130);
  EXPECT_NE(result.out.find("no profile was kept"), std::string::npos) << result.out;
  EXPECT_FALSE(std::filesystem::exists(cache));
  EXPECT_EQ(json::parse(ReadFile(result_file))["interrupted"], true);
}

TEST(Probe, WhereItCannotBeKeptItSaysSoAndIsDone) {
  const TempDir dir;
  WriteFile(dir / "file", "in the way");
  const RunResult result = RunMoe({"probe", "--seconds", "0", "--buffer", "16", "--threads", "1"},
                                  {.environment = {{"MOE_MACHINE_CACHE", dir / "file/machine.json"}}});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out.find("Not kept: [" + (dir / "file/machine.json") + "] got '"), std::string::npos) << result.out;
}

TEST(Probe, ListsTheBuiltInMachines) {
  const RunResult text = RunMoe({"probe", "--list"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  const RunResult result = RunMoe({"probe", "--list", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json machines = json::parse(result.out)["machines"];
  ASSERT_GE(machines.size(), 4u);
  for (const json& machine : machines) {
    EXPECT_NE(text.out.find(machine["name"].get<std::string>() + ": "), std::string::npos) << machine["name"];
    EXPECT_FALSE(machine["source"].get<std::string>().empty());
  }
}

TEST(Probe, BadInputIsOneLine) {
  ExpectFails(RunMoe({"probe", "--seconds", "-1"}), 2, "--seconds", "got -1");
  ExpectFails(RunMoe({"probe", "--seconds", "nan"}), 2, "--seconds", "got nan");
  ExpectFails(RunMoe({"probe", "--buffer", "15"}), 2, "--buffer", "got 15, expected 16 to ");
  ExpectFails(RunMoe({"probe", "--buffer", "1000000000"}), 2, "--buffer", "it is taken twice");
  ExpectFails(RunMoe({"probe", "--out", "-"}), 2, "--out", "expected a file");
  ExpectFails(RunMoe({"probe", "--out", "/nowhere/machine.json"}), 1, "/nowhere/machine.json", "expected");
  ExpectFails(RunMoe({"probe", "--list", "--out", "machine.json"}), 2, "--list", "expected one of them");
  ExpectFails(RunMoe({"probe", "extra"}), 2, "arguments", "got 'extra'");
}

}  // namespace
}  // namespace moe::test
