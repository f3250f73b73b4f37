#include "moe/costs/machine_json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "moe/costs/op_time.h"

namespace moe {
namespace {

using Json = nlohmann::json;

// No two figures alike, and none that a decimal number says exactly.
MachineProfile Awkward() {
  MachineProfile m{.name = "n",
                   .cpu = "a \"cpu\" (tm)",
                   .isa = "avx2",
                   .version = "9.8.7",
                   .date = "2031-02-03",
                   .source = "made up",
                   .revision = 3,
                   .threads = 7,
                   .l2_bytes = 1048577,
                   .l3_bytes = 33554433,
                   .memory_bytes = (int64_t{1} << 40) + 1,
                   .weights_bytes_per_s = {{{262144, 1e11 / 3}, {1e9 + 0.5, 1e10 / 7}}},
                   .read_bytes_per_s = 1e10 / 9,
                   .rmw_bytes_per_s = 1e10 / 11,
                   .adamw_bytes_per_s = 1e10 / 13,
                   .adamw_wide_bytes_per_s = 1e10 / 43,
                   .peak_f32 = 1e12 / 17,
                   .peak_bf16 = 1e12 / 19,
                   .peak_int8 = 1e12 / 23,
                   .pace_flop_per_s = 1e12 / 29,
                   .handover_s = 1e-7 / 41,
                   .barrier_s = 1e-6 / 31,
                   .step_s = 1e-4 / 37,
                   .routing = {1e-6 / 3, 1e-7 / 3, 1e-8 / 3, 1e-9 / 3},
                   .routing_backward = {1e-6 / 7, 1e-7 / 7, 1e-8 / 7, 1e-9 / 7}};
  double x = 1;
  for (const DType format : {DType::kBf16, DType::kF32}) {
    for (int kind = 0; kind < kNumProductKinds; ++kind) {
      x *= 1.1;
      m.products.push_back({.format = format,
                            .kind = static_cast<ProductKind>(kind),
                            .step_s = {{{1, x * 1e-10}, {8, x * 1e-9}}},
                            .panel_s = {}});
      if (kind != 3) m.products.back().panel_s = {{{1, x * 1e-8}, {4, x * 2e-8}, {8, x * 3e-8}}};
    }
    for (const bool gradients : {false, true}) {
      m.streams.push_back({format, gradients, 0.91 * x, 1.7 * x, 1e-6 / x, 1e-5 / x});
      x += 1;
    }
    m.attention.push_back({format, {{{1, 1e-11 / x}, {64, 1e-12 / x}}}, {{{64, 4e-12 / x}}}, 1e-9 / x, 0.7 * x, 1.3 * x});
  }
  for (double& s : m.row_op_s) s = 1e-10 / (x += 1);
  return m;
}

void ExpectSame(const Curve& a, const Curve& b) {
  ASSERT_EQ(a.points.size(), b.points.size());
  for (size_t i = 0; i < a.points.size(); ++i)
    EXPECT_TRUE(a.points[i].x == b.points[i].x && a.points[i].y == b.points[i].y) << i;
}

void ExpectSame(const RoutingCost& a, const RoutingCost& b) {
  EXPECT_EQ(a.call_s, b.call_s);
  EXPECT_EQ(a.token_s, b.token_s);
  EXPECT_EQ(a.expert_s, b.expert_s);
  EXPECT_EQ(a.slot_s, b.slot_s);
}

void ExpectSame(const MachineProfile& a, const MachineProfile& b) {
  EXPECT_EQ(std::tie(a.name, a.cpu, a.isa, a.version, a.date, a.source),
            std::tie(b.name, b.cpu, b.isa, b.version, b.date, b.source));
  EXPECT_EQ(std::tie(a.revision, a.threads, a.l2_bytes, a.l3_bytes, a.memory_bytes),
            std::tie(b.revision, b.threads, b.l2_bytes, b.l3_bytes, b.memory_bytes));
  ExpectSame(a.weights_bytes_per_s, b.weights_bytes_per_s);
  EXPECT_EQ(std::tie(a.read_bytes_per_s, a.rmw_bytes_per_s, a.adamw_bytes_per_s, a.adamw_wide_bytes_per_s),
            std::tie(b.read_bytes_per_s, b.rmw_bytes_per_s, b.adamw_bytes_per_s, b.adamw_wide_bytes_per_s));
  EXPECT_EQ(std::tie(a.peak_f32, a.peak_bf16, a.peak_int8, a.pace_flop_per_s),
            std::tie(b.peak_f32, b.peak_bf16, b.peak_int8, b.pace_flop_per_s));
  EXPECT_EQ(std::tie(a.handover_s, a.barrier_s, a.step_s, a.row_op_s),
            std::tie(b.handover_s, b.barrier_s, b.step_s, b.row_op_s));
  ASSERT_EQ(a.products.size(), b.products.size());
  for (size_t i = 0; i < a.products.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_TRUE(a.products[i].format == b.products[i].format && a.products[i].kind == b.products[i].kind);
    ExpectSame(a.products[i].step_s, b.products[i].step_s);
    ExpectSame(a.products[i].panel_s, b.products[i].panel_s);
  }
  ASSERT_EQ(a.streams.size(), b.streams.size());
  for (size_t i = 0; i < a.streams.size(); ++i) {
    const StreamCost &s = a.streams[i], &t = b.streams[i];
    EXPECT_EQ(std::tie(s.format, s.gradients, s.efficiency, s.overlap, s.matrix_s, s.list_s),
              std::tie(t.format, t.gradients, t.efficiency, t.overlap, t.matrix_s, t.list_s));
  }
  ASSERT_EQ(a.attention.size(), b.attention.size());
  for (size_t i = 0; i < a.attention.size(); ++i) {
    const AttentionCost &s = a.attention[i], &t = b.attention[i];
    EXPECT_EQ(std::tie(s.format, s.row_s, s.efficiency, s.overlap), std::tie(t.format, t.row_s, t.efficiency, t.overlap));
    ExpectSame(s.pair_s, t.pair_s);
    ExpectSame(s.backward_pair_s, t.backward_pair_s);
  }
  ExpectSame(a.routing, b.routing);
  ExpectSame(a.routing_backward, b.routing_backward);
}

Json Small() {
  return Json::parse(R"({"cpu": "c", "read_bytes_per_s": 4e10, "peak_flop_per_s": {"f32": 1e11, "bf16": 4e11}})");
}

// The error of a good file with one thing changed.
std::string ErrorOf(const std::string& patch, Json json = Small()) {
  json.merge_patch(Json::parse(patch));
  const auto machine = MachineFromJson(json, "machine.json");
  if (machine) return "accepted";
  EXPECT_EQ(machine.error().exit_code, 1);
  return machine.error().Message();
}

TEST(MachineJson, GivesBackEveryBit) {
  const MachineProfile m = Awkward();
  const auto again = MachineFromJson(Json::parse(JsonOf(m).dump()), "f");
  ASSERT_TRUE(again) << again.error().Message();
  ExpectSame(m, *again);
  for (const std::string_view name : MachineNames()) {
    SCOPED_TRACE(name);
    const MachineProfile known = BuiltInMachine(std::string(name)).value();
    ExpectSame(known, MachineFromJson(Json::parse(JsonOf(known).dump()), "f").value());
  }
}

TEST(MachineJson, HasTheKeysThatOthersReadWithRatesThatAreTimes) {
  const MachineProfile m = Awkward();
  const Json j = JsonOf(m);
  for (const char* key :
       {"cpu", "isa", "threads", "read_bytes_per_s", "rmw_bytes_per_s", "barrier_s", "gamma", "date", "version"}) {
    EXPECT_TRUE(j.contains(key)) << key;
  }
  for (const char* key : {"f32", "bf16", "int8"}) EXPECT_TRUE(j["peak_flop_per_s"].contains(key)) << key;
  size_t backward = 0;
  for (const Json& entry : j["gamma"]) {
    const double rows = entry["rows"], panel = entry.value("panel_s", 0.0);
    EXPECT_TRUE(entry["dtype"] == "f32" || entry["dtype"] == "bf16");
    EXPECT_EQ(entry["product"] == "weight_grad", entry["pass"] == "backward");
    backward += entry["pass"] == "backward" ? 1 : 0;
    if (!entry.contains("step_s")) continue;  // rows at which only panel_s was given
    const double expected = 2 * 32 * 1024 * rows / (1024 * entry["step_s"].get<double>() + panel);
    EXPECT_NEAR(entry["flop_per_s"].get<double>() / expected, 1, 1e-12) << entry.dump();
  }
  EXPECT_EQ(backward, 4u);
  EXPECT_EQ(j["gamma"].size(), 2u * (3 * 3 + 2));
}

TEST(MachineJson, AFileByHandNeedsThreeFigures) {
  const auto m = MachineFromJson(Small(), "f");
  ASSERT_TRUE(m) << m.error().Message();
  EXPECT_EQ(m->name, "c");
  EXPECT_EQ(m->memory_bytes_per_s(), 4e10);
  EXPECT_EQ(m->rmw_bytes_per_s, 4e10);
  for (int kind = 0; kind < kNumProductKinds; ++kind) {
    EXPECT_NEAR(FlopPerS(m->product(DType::kBf16, static_cast<ProductKind>(kind)), 5), 4e11, 1) << kind;
  }
  Json bf16 = Small();
  bf16["peak_flop_per_s"].erase("f32");
  EXPECT_EQ(MachineFromJson(bf16, "f")->peak_f32, 2e11);
  Json named = Small();
  named.erase("cpu"), named["name"] = "desk";
  EXPECT_EQ(MachineFromJson(named, "f")->cpu, "desk");
}

TEST(MachineJson, ARateAloneIsForEveryProduct) {
  Json json = Small();
  json["gamma"] =
      Json::parse(R"([{"dtype": "bf16", "rows": 1, "flop_per_s": 2e10}, {"dtype": "bf16", "rows": 16, "flop_per_s": 2e11},
                                  {"dtype": "f32", "pass": "backward", "rows": 4, "flop_per_s": 5e9}])");
  const auto m = MachineFromJson(json, "f");
  ASSERT_TRUE(m) << m.error().Message();
  for (int kind = 0; kind < kNumProductKinds; ++kind) {
    const ProductCost& cost = m->product(DType::kBf16, static_cast<ProductKind>(kind));
    EXPECT_NEAR(FlopPerS(cost, 1), 2e10, 1) << kind;
    EXPECT_NEAR(FlopPerS(cost, 16), 2e11, 1) << kind;
  }
  EXPECT_NEAR(FlopPerS(m->product(DType::kF32, ProductKind::kWeightGrad), 4), 5e9, 1);
  EXPECT_NEAR(FlopPerS(m->product(DType::kF32, ProductKind::kLinear), 4), 1e11, 1);
}

TEST(MachineJson, TimesOfMoreRowsDoNotFallAndLargerSetsAreNotFaster) {
  Json json = Small();
  json["gamma"] =
      Json::parse(R"([{"dtype": "f32", "rows": 1, "flop_per_s": 1e9}, {"dtype": "f32", "rows": 2, "flop_per_s": 1e10}])");
  json["weights_by_working_set"] = Json::parse(R"([{"bytes": 1e6, "bytes_per_s": 4e10}, {"bytes": 1e8, "bytes_per_s": 6e10}])");
  const auto m = MachineFromJson(json, "f");
  ASSERT_TRUE(m) << m.error().Message();
  const Curve& step = m->product(DType::kF32, ProductKind::kLinear).step_s;
  EXPECT_EQ(step.TimeAt(1), step.TimeAt(2));
  EXPECT_EQ(m->weights_bytes_per_s.At(1e6), 5e10);
  EXPECT_EQ(m->memory_bytes_per_s(), 5e10);
}

TEST(MachineJson, WrongFiguresAreNamed) {
  const auto error = [](const std::string& patch) { return ErrorOf(patch); };
  EXPECT_EQ(error(R"({"streams": [{"dtype": "f32", "overlap": -3}]})"),
            "[machine.json] got -3 for streams[0].overlap, expected more than 0");
  EXPECT_EQ(error(R"({"streams": [{"dtype": "f32", "of": "biases"}]})"),
            "[machine.json] got 'biases' for streams[0].of, expected weights or gradients");
  EXPECT_EQ(error(R"({"streams": [{"dtype": "f32", "of": "gradients"}, {"dtype": "f32"}]})"), "accepted");
  EXPECT_EQ(error(R"({"read_bytes_per_s": null})"),
            "[machine.json] got nothing for read_bytes_per_s, expected a number more than 0");
  EXPECT_EQ(error(R"({"read_bytes_per_s": "fast"})"), "[machine.json] got \"fast\" for read_bytes_per_s, expected a number");
  EXPECT_EQ(error(R"({"read_bytes_per_s": 40})"), "[machine.json] got 40 for read_bytes_per_s, expected at least 1000");
  EXPECT_EQ(error(R"({"read_bytes_per_s": 1e300})"), "[machine.json] got 1e+300 for read_bytes_per_s, expected at most 1e+21");
  EXPECT_EQ(error(R"({"peak_flop_per_s": {"f32": 0}})"), "[machine.json] got 0 for peak_flop_per_s.f32, expected more than 0");
  EXPECT_EQ(error(R"({"peak_flop_per_s": {"f32": null, "bf16": null}})"),
            "[machine.json] got neither f32 nor bf16 for peak_flop_per_s, expected one of them");
  EXPECT_EQ(error(R"({"barrier_s": -1e-6})"), "[machine.json] got -1e-06 for barrier_s, expected 0 or more");
  EXPECT_EQ(error(R"({"threads": 1.5})"), "[machine.json] got 1.5 for threads, expected a whole number");
  EXPECT_EQ(error(R"({"cpu": null})"), "[machine.json] got nothing for cpu, expected the processor's name, or a name");
  EXPECT_EQ(error(R"({"cpu": "a\nb"})"), "[machine.json] got \"a\\nb\" for cpu, expected one line without control characters");
  EXPECT_EQ(error(R"({"routing": {"slot_s": []}})"), "[machine.json] got [] for routing.slot_s, expected a number");
  EXPECT_EQ(error(R"({"gamma": {}})"), "[machine.json] got {} for gamma, expected a list of objects");
  EXPECT_EQ(error(R"({"rmw_byte_per_s": 1e9})"), "[machine.json] got the key 'rmw_byte_per_s', expected 'rmw_bytes_per_s'?");
  EXPECT_EQ(error(R"({"chunk_read_bytes_per_s": 1, "by_threads": []})"), "accepted");  // of moe probe
  EXPECT_EQ(MachineFromJson(Json::array(), "f").error().Message(), "[f] got [], expected an object as moe probe writes it");
}

TEST(MachineJson, ListsThatAreOutOfOrderAreNamed) {
  EXPECT_EQ(ErrorOf(R"({"weights_by_working_set": [{"bytes": 8, "bytes_per_s": 1e9}, {"bytes": 8, "bytes_per_s": 1e9}]})"),
            "[machine.json] got 8 for weights_by_working_set[1].bytes, expected more than 8, that of the one before");
  const std::string linear = R"({"dtype": "f32", "product": "linear", "rows": 4, "flop_per_s": 1e9})";
  EXPECT_EQ(ErrorOf(R"({"gamma": [)" + linear + "," + linear + "]}"),
            "[machine.json] got 4 for gamma[1].rows, expected more than 4, that of the one before");
  EXPECT_EQ(ErrorOf(R"({"gamma": [{"dtype": "int8", "rows": 4, "flop_per_s": 1e9}]})"),
            "[machine.json] got 'int8' for gamma[0].dtype, expected f32 or bf16");
  EXPECT_EQ(ErrorOf(R"({"gamma": [{"dtype": "f32", "rows": 4}]})"),
            "[machine.json] got nothing for gamma[0].flop_per_s, expected a number more than 0");
  EXPECT_EQ(ErrorOf(R"({"gamma": [{"dtype": "f32", "product": "up", "rows": 4, "flop_per_s": 1e9}]})"),
            "[machine.json] got 'up' for gamma[0].product, expected linear, gate_up, down or weight_grad");
  EXPECT_EQ(ErrorOf(R"({"gamma": [{"dtype": "f32", "product": "down", "rows": 4, "panel_s": 1e-9}]})"),
            "[machine.json] got panel_s alone in gamma of f32 down, expected step_s or flop_per_s besides");
  EXPECT_EQ(ErrorOf(R"({"streams": [{"dtype": "f32"}, {"dtype": "f32"}]})"),
            "[machine.json] got 'f32' again for streams[1].dtype, expected each once");
  EXPECT_EQ(ErrorOf(R"({"attention": [{"dtype": "f32", "pair_s": []}]})"),
            "[machine.json] got [] for attention[0].pair_s, expected a list of objects");
}

TEST(MachineJson, AttentionWithoutItsBackwardPassHasOne) {
  Json json = Small();
  json["attention"] = Json::parse(R"([{"dtype": "bf16", "pair_s": [{"rows": 1, "s": 2e-11}]}])");
  const auto m = MachineFromJson(json, "f");
  ASSERT_TRUE(m) << m.error().Message();
  EXPECT_DOUBLE_EQ(m->attention_of(DType::kBf16).backward_pair_s.At(1), 5e-11);
}

TEST(BuiltInMachine, EachIsCompleteAndPredictsWhatItsSheetSays) {
  ASSERT_FALSE(MachineNames().empty());
  for (const std::string_view name : MachineNames()) {
    SCOPED_TRACE(name);
    const MachineProfile m = BuiltInMachine(std::string(name)).value();
    EXPECT_EQ(m.name, name);
    EXPECT_FALSE(m.source.empty());
    EXPECT_GT(m.memory_bytes, int64_t{8} << 30);
    for (const double s : m.row_op_s) EXPECT_GT(s, 0);
    for (const DType format : {DType::kF32, DType::kBf16}) {
      for (int kind = 0; kind < kNumProductKinds; ++kind) {
        // One row waits for memory, thousands for arithmetic; beside so large a matrix a launch is nothing.
        const double N = 65536, K = 8192, bytes = N * K * static_cast<double>(SizeOf(format));
        const RowsOfMatrices one[] = {{1, 1}}, many[] = {{1, 1 << 16}};
        ProductOp op{
            .format = format, .kind = static_cast<ProductKind>(kind), .N = N, .K = K, .bytes = bytes, .reuse_bytes = 1e12};
        op.rows = one;
        EXPECT_NEAR(TimeOf(op, {m}).s * m.memory_bytes_per_s() / bytes, 1, 0.1);
        op.rows = many;
        EXPECT_NEAR(TimeOf(op, {m}).s * m.peak_flop_per_s(format) / (2 * N * K * (1 << 16)), 1, 0.1);
      }
      EXPECT_GT(m.attention_of(format).pair_s.At(1), 0);
      EXPECT_GT(m.attention_of(format).backward_pair_s.At(1), m.attention_of(format).pair_s.At(1));
    }
  }
}

TEST(BuiltInMachine, AnUnknownNameListsTheNearestFirst) {
  for (const auto& [typed, nearest] :
       {std::pair{"h100", "h100-sxm"}, {"a100-80", "a100-80g"}, {"m2ultra", "m2-ultra"}, {"dgx_spark", "dgx-spark"}}) {
    const auto machine = BuiltInMachine(typed);
    ASSERT_FALSE(machine) << typed;
    EXPECT_EQ(machine.error().exit_code, 2);
    EXPECT_NE(machine.error().what.find(std::string("one of ") + nearest), std::string::npos) << machine.error().Message();
    for (const std::string_view name : MachineNames()) EXPECT_NE(machine.error().what.find(name), std::string::npos) << name;
  }
}

}  // namespace
}  // namespace moe
