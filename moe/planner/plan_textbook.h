#pragma once
// The plan of a blackboard: a machine of two numbers, models of one to three. A step takes the longer of reading and computing.

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "moe/base/result.h"
#include "moe/planner/plan_report.h"

namespace moe {

// All of its parameters count as experts' but for the active ones' share: B tokens read total * (1 - (1 - active/total)^B).
struct ToyModel {
  double flop_per_token = 0;
  double parameters = 0, active = 0;  // 0: only arithmetic is asked for
};

struct ToyMachine {
  double flop_per_s = 0;
  double bytes_per_s = 0;  // 0: only arithmetic is asked for
};

struct TextbookOptions {
  ToyMachine machine;
  std::vector<double> flop_per_token, parameters, active;  // as given; of the same length or empty
  double weight_bytes = 2;
  std::string dtype = "bf16";
  std::vector<int64_t> batches;  // ascending
};

struct ToyPlan {
  ToyModel model;
  double compute_tokens_per_s = 0;
  double batch_1_s = 0, read_all_s = 0;  // active and total weights, once; 0 without bandwidth
  double b_sat = 0, b_d = 0, b_m = 0;    // b_m: where its own arithmetic takes longer than reading all of it
  std::vector<double> s_per_step;        // of each batch
};

struct Textbook {
  TextbookOptions options;
  std::vector<ToyPlan> models;  // the first is what others are compared with

  bool reads() const { return options.machine.bytes_per_s > 0; }
  double Speedup(size_t model, size_t batch) const {  // over the first
    return models.front().s_per_step[batch] / models[model].s_per_step[batch];
  }
};

// FLOP per token: as given, else 2 for each active parameter. Active: as given, else all. Wrong usage: lists of different
// length, none at all, active above total, bandwidth without parameters.
Result<Textbook> MakeTextbook(const TextbookOptions& options);

nlohmann::json TextbookJson(const Textbook& textbook);
std::string TextbookText(const Textbook& textbook, const TextStyle& style);

}  // namespace moe
