#include "moe/planner/machine_cache.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "moe/base/cpu_info.h"
#include "moe/base/version.h"
#include "moe/costs/machine_json.h"
#include "testing/temp_dir.h"

namespace moe::test {
namespace {

// Sets a variable of the environment, or clears it, until the end of the scope.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    value != nullptr ? setenv(name, value, 1) : unsetenv(name);
  }
  ~Variable() { old_ ? setenv(name_, old_->c_str(), 1) : unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
  std::optional<std::string> old_;
};

class MachineCache : public testing::Test {
 protected:
  ThreadPool pool{2};
  Arena arena;
  ExecContext ctx{pool, arena, *SupportedKernelTables().front()};
  TempDir dir;
  std::vector<std::string> said;
  int measured = 0;  // times

  // Measures nothing: Known() is what is found.
  MachineRequest Request(const std::string& machine = "") {
    return {.machine = machine,
            .cache = dir / "sub/moe/machine.json",
            .seconds = 3,
            .buffer_bytes = int64_t{16} << 20,
            .say = [this](const std::string& line) { said.push_back(line); },
            .measure =
                [this](double seconds, int64_t buffer_bytes, const auto&, ExecContext&) {
                  EXPECT_EQ(seconds, 3);
                  EXPECT_EQ(buffer_bytes, int64_t{16} << 20);
                  MachineProfile m = Known();
                  m.name = "this machine";
                  return MeasuredProfile{m, ++measured};
                }};
  }
  // As if this machine had been measured, with a figure that no measurement gives.
  MachineProfile Known() {
    MachineProfile m = BuiltInMachine("m2-ultra").value();
    m.name = "kept", m.cpu = GetCpuInfo().name, m.isa = ctx.kernels.name, m.version = Version(), m.threads = 2;
    m.revision = kProfileRevision;
    return m;
  }
};

TEST(MachineCachePath, IsTheFirstOfThreePlaces) {
  const Variable home("HOME", "/h");
  {
    const Variable cache("MOE_MACHINE_CACHE", "/m.json"), xdg("XDG_CACHE_HOME", "/x");
    EXPECT_EQ(MachineCachePath(), "/m.json");
  }
  const Variable cache("MOE_MACHINE_CACHE", nullptr);
  {
    const Variable xdg("XDG_CACHE_HOME", "/x");
    EXPECT_EQ(MachineCachePath(), "/x/moe/machine.json");
  }
  {
    const Variable xdg("XDG_CACHE_HOME", "relative");
    EXPECT_EQ(MachineCachePath(), "/h/.cache/moe/machine.json");
  }
  const Variable xdg("XDG_CACHE_HOME", nullptr), no_home("HOME", nullptr);
  EXPECT_EQ(MachineCachePath(), "");
}

// The real thing.
TEST_F(MachineCache, IsMeasuredOnceThenRead) {
  MachineRequest request = Request();
  request.measure = MachineRequest{}.measure, request.seconds = 0;
  const auto first = LoadOrProbe(request, ctx);
  ASSERT_TRUE(first) << first.error().Message();
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0], "there is no profile of this machine at " + Request().cache + ": probing it, 0 s");
  EXPECT_EQ(first->threads, 2);
  EXPECT_GT(first->memory_bytes_per_s(), 0);
  const std::string written = ReadFile(Request().cache);
  EXPECT_FALSE(std::filesystem::exists(Request().cache + ".tmp"));
  const auto again = LoadOrProbe(request, ctx);
  ASSERT_TRUE(again) << again.error().Message();
  EXPECT_EQ(said.size(), 1u);
  EXPECT_EQ(JsonOf(*again), JsonOf(*first));
  EXPECT_EQ(ReadFile(Request().cache), written);
}

TEST_F(MachineCache, AFreshOneIsNotMeasuredAgain) {
  ASSERT_TRUE(WriteMachine(Request().cache, Known()));
  const auto machine = LoadOrProbe(Request(), ctx);
  ASSERT_TRUE(machine) << machine.error().Message();
  EXPECT_EQ(machine->name, "kept");
  EXPECT_TRUE(said.empty());
  EXPECT_EQ(measured, 0);
}

TEST_F(MachineCache, AnInterruptedOneIsNotKept) {
  MachineRequest request = Request();
  request.measure = [](double, int64_t, const auto&, ExecContext&) { return MeasuredProfile{.interrupted = true}; };
  const auto machine = LoadOrProbe(request, ctx);
  ASSERT_FALSE(machine);
  EXPECT_EQ(machine.error().exit_code, 130);
  EXPECT_FALSE(std::filesystem::exists(request.cache));
}

TEST_F(MachineCache, WhatMakesOneStaleIsSaid) {
  const std::string cpu = GetCpuInfo().name, isa = ctx.kernels.name;
  EXPECT_EQ(Staleness(Known(), ctx), "");
  MachineProfile m = Known();
  m.threads = 4;
  EXPECT_EQ(Staleness(m, ctx), "of 4 threads, this process has 2");
  m = Known(), m.cpu = "abacus";
  EXPECT_EQ(Staleness(m, ctx), "of processor 'abacus', this is '" + cpu + "'");
  m = Known(), m.isa = "beads";
  EXPECT_EQ(Staleness(m, ctx), "of kernels 'beads', this is '" + isa + "'");
  m = Known(), m.revision = kProfileRevision - 1;
  EXPECT_EQ(Staleness(m, ctx), fmt::format("of revision {}, this program measures revision {}", m.revision, kProfileRevision));
  m = Known(), m.version = "0.0.0";
  EXPECT_EQ(Staleness(m, ctx), std::string("of version '0.0.0', this is '") + Version() + "'");
}

TEST_F(MachineCache, AStaleOneIsMeasuredAgain) {
  MachineProfile other = Known();
  other.threads = 4;
  ASSERT_TRUE(WriteMachine(Request().cache, other));
  const auto machine = LoadOrProbe(Request(), ctx);
  ASSERT_TRUE(machine) << machine.error().Message();
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0], Request().cache + " is of 4 threads, this process has 2: probing it, 3 s");
  EXPECT_EQ(measured, 1);
  EXPECT_EQ(machine->name, "this machine");
  EXPECT_EQ(ReadMachine(Request().cache)->threads, 2);
}

TEST_F(MachineCache, ABrokenOneIsMeasuredAgainAndAnExplicitOneIsAnError) {
  ASSERT_TRUE(WriteMachine(Request().cache, Known()));
  auto json = nlohmann::json::parse(ReadFile(Request().cache));
  json["streams"][0]["overlap"] = -3;
  WriteFile(Request().cache, json.dump());
  const auto asked = LoadOrProbe(Request(Request().cache), ctx);
  ASSERT_FALSE(asked);
  EXPECT_EQ(asked.error().Message(), "[" + Request().cache + "] got -3 for streams[0].overlap, expected more than 0");
  EXPECT_TRUE(said.empty());

  const auto machine = LoadOrProbe(Request(), ctx);
  ASSERT_TRUE(machine) << machine.error().Message();
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0], Request().cache + " is broken (got -3 for streams[0].overlap, expected more than 0): probing it, 3 s");
  EXPECT_TRUE(ReadMachine(Request().cache));
}

// A file by hand may leave out what follows from the rest; one that a probe wrote has measured it.
TEST_F(MachineCache, OneThatLacksAFigureIsMeasuredAgain) {
  ASSERT_TRUE(WriteMachine(Request().cache, Known()));
  const auto whole = nlohmann::json::parse(ReadFile(Request().cache));
  for (const std::string key : {"streams", "attention", "row_ops", "gamma", "routing", "adamw_bytes_per_s"}) {
    auto json = whole;
    json.erase(key);
    WriteFile(Request().cache, json.dump());
    EXPECT_TRUE(ReadMachine(Request().cache)) << key;
    const KeptMachine kept = ReadKeptMachine(Request().cache, ctx);
    EXPECT_FALSE(kept.machine) << key;
    EXPECT_EQ(kept.why, Request().cache + " lacks some of '" + key + "'");
  }
  auto json = whole;
  json["streams"].erase(0);
  WriteFile(Request().cache, json.dump());
  EXPECT_EQ(ReadKeptMachine(Request().cache, ctx).why, Request().cache + " lacks some of 'streams'");
}

TEST_F(MachineCache, WhereItCannotBeKeptIsALineAndNoError) {
  WriteFile(dir / "file", "in the way");
  MachineRequest request = Request();
  request.cache = dir / "file/machine.json";
  const auto machine = LoadOrProbe(request, ctx);
  ASSERT_TRUE(machine) << machine.error().Message();
  ASSERT_EQ(said.size(), 2u);
  EXPECT_TRUE(said[1].starts_with(request.cache)) << said[1];
  EXPECT_TRUE(said[1].ends_with(": the profile is not kept")) << said[1];
}

TEST_F(MachineCache, NamesAndFilesAreTakenAsTheyAre) {
  EXPECT_EQ(LoadOrProbe(Request("h100-sxm"), ctx)->name, "h100-sxm");
  const std::string path = dir / "mine";
  WriteFile(path, R"({"name": "mine", "read_bytes_per_s": 5e10, "peak_flop_per_s": {"f32": 1e12}})");
  EXPECT_EQ(LoadOrProbe(Request(path), ctx)->memory_bytes_per_s(), 5e10);
  const auto unknown = LoadOrProbe(Request("h100"), ctx);
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().exit_code, 2);
  EXPECT_NE(unknown.error().what.find("one of h100-sxm"), std::string::npos) << unknown.error().what;
  const auto missing = LoadOrProbe(Request("nowhere.json"), ctx);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().where, "nowhere.json");
  EXPECT_TRUE(said.empty());
}

TEST_F(MachineCache, NothingButAFileIsWrittenOver) {
  EXPECT_FALSE(WriteMachine("/dev/null", Known()));
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  EXPECT_FALSE(WriteMachine(dir.path().string(), Known()));
}

}  // namespace
}  // namespace moe::test
