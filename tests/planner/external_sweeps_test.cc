// What the planner says of machines and models that others measured, beside the formulas that calculators use. Prints its
// tables; benches/external/README.md shows them.
#include "testing/external_sweeps.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "moe/planner/predict.h"
#include "moe/planner/step_cost.h"

namespace moe {
namespace {

using test::ExternalModel;
using test::ExternalRow;
using test::ExternalSweeps;

const ExternalSweeps& Sweeps() {
  static const ExternalSweeps sweeps = test::LoadExternalSweeps(MOE_SOURCE_DIR "/benches/external/sweeps.json");
  return sweeps;
}

double D(int64_t n) {
  return static_cast<double>(n);
}

// Values of the matrices that steps read, by format; all layers alike.
struct Values {
  double attention = 0, expert = 0, ffn = 0, router = 0, head = 0, layers = 0;  // expert: one, of one layer; the rest of all
  int64_t experts = 0, top_k = 0;
};

Values ValuesOf(const ExternalModel& m) {
  const ParameterCount count = CountParameters(m.config);
  const RouterConfig& router = m.config.layers[0].moe.router;
  Values v{.attention = D(count.attention),
           .ffn = D(count.dense_ffn),
           .router = D(count.router),
           .head = D(m.config.vocab_size * m.config.hidden),
           .layers = D(std::ssize(m.config.layers))};
  if (!m.config.has_experts()) return v;
  v.experts = router.num_experts, v.top_k = router.top_k;
  v.expert = D(count.experts) / D(router.num_experts) / v.layers;
  return v;
}

// One step: so many tokens, each of which sees so many positions in the mean over layers.
struct Work {
  double tokens = 0, sequences = 0, positions = 0;
  double kv_read = 0;  // positions read of caches, all sequences together
};

double Distinct(const Values& v, double tokens) {
  return v.experts == 0 ? 0 : DistinctExperts(UniformChances(v.experts, v.top_k), tokens);
}

double BytesOf(const ExternalModel& m, const Work& w, double distinct) {
  const Values v = ValuesOf(m);
  const double weights = v.attention * m.attention_bytes + (v.ffn + v.layers * distinct * v.expert) * m.experts_bytes +
                         v.router * m.router_bytes + v.head * m.head_bytes;
  return weights + v.layers * w.kv_read * 2 * D(m.config.num_kv_heads * m.config.head_width) * m.kv_bytes;
}

double FlopOf(const ExternalModel& m, const Work& w) {
  const Values v = ValuesOf(m);
  const double per_token = v.attention + v.ffn + v.router + v.layers * D(v.top_k) * v.expert;
  return 2 * (w.tokens * per_token + w.sequences * v.head) +
         v.layers * w.tokens * w.positions * 4 * D(m.config.num_heads * m.config.head_width);
}

// Which experts a calculator thinks are read.
enum class Reads { kAll, kTopK, kUniform };

double Roofline(const ExternalModel& m, const Work& w, Reads reads, const MachineProfile& machine, double memory) {
  const Values v = ValuesOf(m);
  const double distinct = reads == Reads::kAll ? D(v.experts) : reads == Reads::kTopK ? D(v.top_k) : Distinct(v, w.tokens);
  return std::max(BytesOf(m, w, distinct) / (machine.memory_bytes_per_s() * memory),
                  FlopOf(m, w) / machine.peak_flop_per_s(DType::kBf16));
}

// The planner has one figure for all matrices but the router: the mean over what this step reads, so that the bytes are right.
StepModel ModelFor(const ExternalModel& m, double tokens) {
  const Values v = ValuesOf(m);
  const double experts = v.ffn + v.layers * Distinct(v, tokens) * v.expert;
  const double bytes = v.attention * m.attention_bytes + experts * m.experts_bytes + v.head * m.head_bytes;
  return {.config = m.config, .format = DType::kBf16, .weight_bytes = bytes / (v.attention + experts + v.head)};
}

// The planner counts caches in float32.
MachineProfile WithCacheOf(MachineProfile machine, double kv_bytes) {
  for (AttentionCost& cost : machine.attention) cost.efficiency = 4 / kv_bytes;
  return machine;
}

// Positions that the tokens of a prompt's piece see: `rows` of them after `depth`, in the mean over tokens and layers.
double MeanSeen(const ExternalModel& m, int64_t depth, int64_t rows) {
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) sum += m.MeanPositions(D(depth + i + 1));
  return sum / D(rows);
}

struct Formula {
  const char* name;
  std::function<double(const ExternalModel&, const ExternalRow&, const MachineProfile&, double memory)> s;
};

Work DecodeWork(const ExternalModel& m, const ExternalRow& row) {
  const double positions = m.MeanPositions(D(row.context + 1));
  return {D(row.batch), D(row.batch), positions, D(row.batch) * positions};
}

double PlanDecode(const ExternalModel& m, const ExternalRow& row, const MachineProfile& machine, double memory) {
  const Step step{Phase::kDecode, row.batch, std::llround(m.MeanPositions(D(row.context)))};
  const MachineProfile with_cache = WithCacheOf(machine, m.kv_bytes);
  return Predict(ModelFor(m, D(row.batch)), step, {.machine = with_cache, .memory = memory}).s;
}

// As the software does it: below a batch that the file names, tokens do not share what is read of an expert.
double PlanDecodeUnshared(const ExternalModel& m, const ExternalRow& row, const MachineProfile& machine, double memory) {
  const Values v = ValuesOf(m);
  double s = PlanDecode(m, row, machine, memory);
  if (row.batch >= Sweeps().machines[row.machine].experts_shared_from_batch) return s;
  const double more = D(row.batch * v.top_k) - Distinct(v, D(row.batch));
  return s + v.layers * more * v.expert * m.experts_bytes / (machine.memory_bytes_per_s() * memory);
}

// Of a prompt in pieces: fn(rows of the step, rows of each sequence, positions before them), summed over the steps of one
// prompt; of short prompts several share a step.
double SumPieces(const ExternalRow& row, const std::function<double(int64_t tokens, int64_t rows, int64_t depth)>& fn) {
  if (row.prompt <= row.tokens_per_step) {
    return fn(row.tokens_per_step, row.prompt, row.depth) * D(row.prompt) / D(row.tokens_per_step);
  }
  double s = 0;
  for (int64_t begin = 0; begin < row.prompt; begin += row.tokens_per_step) {
    s += fn(row.tokens_per_step, row.tokens_per_step, row.depth + begin);
  }
  return s;
}

Work PrefillWork(const ExternalModel& m, int64_t tokens, int64_t rows, int64_t depth) {
  const double sequences = D(tokens) / D(rows);
  return {D(tokens), sequences, MeanSeen(m, depth, rows), sequences * m.MeanPositions(D(depth + rows))};
}

// Predict's prompts begin in an empty cache and see all of it; what positions before them add, and windows save, is the
// difference of two attention ops.
double PlanPrefill(const ExternalModel& m, const ExternalRow& row, const MachineProfile& machine, double memory) {
  const MachineProfile with_cache = WithCacheOf(machine, m.kv_bytes);
  const Conditions now{.machine = with_cache, .memory = memory};
  return SumPieces(row, [&](int64_t tokens, int64_t rows, int64_t depth) {
    AttentionOp op{.format = DType::kBf16,
                   .heads = D(m.config.num_heads),
                   .kv_heads = D(m.config.num_kv_heads),
                   .head_width = D(m.config.head_width),
                   .segments = D(tokens / rows),
                   .rows = D(rows),
                   .kv_working_set = 1e12};
    const double plain = TimeOf(op, now).s;
    op.first_position = MeanSeen(m, depth, rows) - (D(rows) + 1) / 2;
    const double layers = D(std::ssize(m.config.layers));
    return Predict(ModelFor(m, D(tokens)), {Phase::kPrefill, tokens, rows}, now).s + layers * (TimeOf(op, now).s - plain);
  });
}

double RooflineDecode(Reads reads, const ExternalModel& m, const ExternalRow& r, const MachineProfile& machine, double memory) {
  return Roofline(m, DecodeWork(m, r), reads, machine, memory);
}

double RooflinePrefill(Reads reads, const ExternalModel& m, const ExternalRow& r, const MachineProfile& machine,
                       double memory) {
  return SumPieces(r, [&](int64_t tokens, int64_t rows, int64_t depth) {
    return Roofline(m, PrefillWork(m, tokens, rows, depth), reads, machine, memory);
  });
}

std::vector<Formula> Formulas(bool decode) {
  const auto roofline = decode ? RooflineDecode : RooflinePrefill;
  std::vector<Formula> formulas = {{"planner", decode ? PlanDecode : PlanPrefill}};
  for (const auto& [name, reads] :
       {std::pair{"all experts", Reads::kAll}, {"k experts", Reads::kTopK}, {"uniform", Reads::kUniform}}) {
    formulas.push_back({name, std::bind_front(roofline, reads)});
  }
  if (decode) formulas.push_back({"planner, unshared", PlanDecodeUnshared});
  return formulas;
}

// Errors of one formula over some rows: the mean of log(predicted / measured), and of its size.
struct Error {
  double sum = 0, size = 0;
  int64_t rows = 0;
  void Add(double log) { sum += log, size += std::abs(log), ++rows; }
  double factor() const { return std::exp(size / D(rows)); }
  double bias() const { return std::exp(sum / D(rows)); }
};

// The share of the data sheet's bandwidth with which the formula has the time of the larger dense model, one sequence, right.
double CalibratedMemory(const Formula& formula, size_t machine_index, const MachineProfile& machine) {
  for (const ExternalRow& row : Sweeps().rows) {
    const ExternalModel& m = Sweeps().models[row.model];
    if (!row.decode || row.machine != machine_index || row.batch != 1 || row.context != 528 || m.name != "qwen2.5-coder-7b") {
      continue;
    }
    double low = 0.1, high = 10;
    for (int i = 0; i < 60; ++i) {
      const double middle = std::sqrt(low * high);
      (formula.s(m, row, machine, middle) > row.s ? low : high) = middle;
    }
    return low;
  }
  ADD_FAILURE() << "no row to calibrate on";
  return 1;
}

using Table = std::map<std::string, std::vector<Error>>;  // by group of rows, one for each formula

// The groups that a row counts in: its model's or its batch's, and the wider ones.
std::vector<std::string> GroupsOf(const ExternalRow& row, bool by_batch) {
  const ExternalModel& m = Sweeps().models[row.model];
  const std::string machine = Sweeps().machines[row.machine].name, kind = m.config.has_experts() ? "mixtures" : "dense models";
  if (by_batch) return {fmt::format("{} | {}, batch {:2}", machine, kind, row.batch)};
  return {machine + " | " + m.name, machine + " | all " + kind, "both | all " + kind, "both | all"};
}

Table ErrorsOf(bool decode, bool calibrated, bool by_batch = false) {
  const std::vector<Formula> formulas = Formulas(decode);
  Table table;
  for (size_t i = 0; i < Sweeps().machines.size(); ++i) {
    const MachineProfile machine = BuiltInMachine(Sweeps().machines[i].name).value();
    for (size_t f = 0; f < formulas.size(); ++f) {
      const double memory = calibrated ? CalibratedMemory(formulas[f], i, machine) : 1;
      if (calibrated)
        fmt::print("{}, {}: {:.0f} GB/s\n", machine.name, formulas[f].name, memory * machine.memory_bytes_per_s() / 1e9);
      for (const ExternalRow& row : Sweeps().rows) {
        if (row.machine != i || row.decode != decode) continue;
        const double log = std::log(formulas[f].s(Sweeps().models[row.model], row, machine, memory) / row.s);
        for (const std::string& group : GroupsOf(row, by_batch)) {
          table[group].resize(formulas.size());
          table[group][f].Add(log);
        }
      }
    }
  }
  return table;
}

void Print(const char* title, const std::vector<Formula>& formulas, const Table& table) {
  fmt::print("{}\n\n| machine | rows of | rows |", title);
  for (const Formula& formula : formulas) fmt::print(" {} |", formula.name);
  fmt::print("\n|---|---|---|");
  for (size_t i = 0; i < formulas.size(); ++i) fmt::print("---|");
  for (const auto& [group, errors] : table) {
    fmt::print("\n| {} | {} |", group, errors[0].rows);
    for (const Error& error : errors) fmt::print(" {:.2f} ({:.2f}) |", error.factor(), error.bias());
  }
  fmt::print("\n\n");
}

TEST(ExternalSweeps, ShapesHaveTheParametersPublished) {
  ASSERT_EQ(Sweeps().machines.size(), 2u);
  ASSERT_EQ(Sweeps().models.size(), 5u);
  for (const ExternalModel& m : Sweeps().models) {
    ASSERT_TRUE(Validate(m.config, m.name).has_value()) << m.name;
    const ParameterCount count = CountParameters(m.config);
    // Biases, sinks and norms that our shape does not have are less than a thousandth.
    EXPECT_NEAR(D(count.total), D(m.total_parameters), 1e-3 * D(m.total_parameters)) << m.name;
    EXPECT_NEAR(D(count.active), D(m.active_parameters), 1e-3 * D(m.active_parameters)) << m.name;
  }
}

TEST(ExternalSweeps, PlannerReadsAndComputesWhatTheFormulasDo) {
  for (const ExternalRow& row : Sweeps().rows) {
    const ExternalModel& m = Sweeps().models[row.model];
    if (!row.decode || row.context != 528) continue;
    const Work work = DecodeWork(m, row);
    const Step step{Phase::kDecode, row.batch, std::llround(m.MeanPositions(D(row.context)))};
    const MachineProfile machine = BuiltInMachine("dgx-spark").value();
    const StepTime t = Predict(ModelFor(m, work.tokens), step, {machine});
    // The planner's cache is in float32.
    const double cache = work.kv_read * ValuesOf(m).layers * 2 * D(m.config.num_kv_heads * m.config.head_width);
    const double bytes = BytesOf(m, work, Distinct(ValuesOf(m), work.tokens)) + (4 - m.kv_bytes) * cache;
    EXPECT_NEAR(t.bytes, bytes, 1e-3 * bytes) << m.name << " " << row.batch;
    EXPECT_NEAR(t.flop, FlopOf(m, work), 1e-3 * t.flop) << m.name << " " << row.batch;
  }
}

// The planner's error is at most `reached`, and less than every naive formula's.
void ExpectNearest(const Table& table, const std::vector<Formula>& formulas, const char* group, double reached) {
  const std::vector<Error>& errors = table.at(group);
  EXPECT_LE(errors[0].factor(), reached) << group;
  for (size_t f = 1; f < 4; ++f) EXPECT_LT(errors[0].factor(), errors[f].factor()) << group << ": " << formulas[f].name;
}

TEST(ExternalSweeps, DecodeIsNearerThanNaiveFormulas) {
  const Table table = ErrorsOf(true, false);
  Print("Decode, bandwidth of the data sheet", Formulas(true), table);
  EXPECT_EQ(table.at("both | all")[0].rows, 230);
  ExpectNearest(table, Formulas(true), "both | all", 1.4);
  ExpectNearest(table, Formulas(true), "both | all mixtures", 1.4);
  ExpectNearest(table, Formulas(true), "dgx-spark | all mixtures", 1.2);
  ExpectNearest(table, Formulas(true), "m2-ultra | all dense models", 1.55);
  // What the software does differently is not what the formulas have wrong: with it the planner is nearer still.
  EXPECT_LT(table.at("both | all mixtures")[4].factor(), table.at("both | all mixtures")[0].factor());
  Print("Decode by batch", Formulas(true), ErrorsOf(true, false, true));
}

TEST(ExternalSweeps, DecodeWithTheBandwidthOfADenseModel) {
  const Table table = ErrorsOf(true, true);
  Print("\nDecode, bandwidth from one sequence of Qwen2.5-Coder-7B", Formulas(true), table);
  ExpectNearest(table, Formulas(true), "both | all", 1.35);
  ExpectNearest(table, Formulas(true), "both | all mixtures", 1.35);
}

TEST(ExternalSweeps, PrefillIsNearerThanNaiveFormulas) {
  const Table table = ErrorsOf(false, false);
  Print("Prefill, figures of the data sheet", Formulas(false), table);
  EXPECT_EQ(table.at("both | all")[0].rows, 130);
  ExpectNearest(table, Formulas(false), "both | all", 2.1);
  ExpectNearest(table, Formulas(false), "both | all mixtures", 2.1);
}

}  // namespace
}  // namespace moe
