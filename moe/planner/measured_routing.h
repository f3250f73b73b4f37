#pragma once
// How a model's routers chose on a text: how often each expert, and how alike the tokens of one sequence choose.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "moe/model/evaluate.h"
#include "moe/planner/step_ops.h"

namespace moe {

// The choices of a text's tokens in their order, T of them.
struct RoutedText {
  struct Layer {
    int64_t experts = 0;                    // 0: dense
    std::vector<int64_t> slot_begin = {0};  // [T+1] token t chose expert[slot_begin[t]] up to expert[slot_begin[t+1]]
    std::vector<int32_t> expert = {};       // [S]
  };
  std::vector<Layer> layers;            // [L]
  std::vector<int64_t> sequence_begin;  // first tokens of what was read in one context, then T
};

// So many tokens in a row of a sequence of that length did not choose an expert, though the tokens at both ends, if any, did.
struct Gap {
  int64_t sequence = 0, tokens = 0, count = 0;
};

struct MeasuredRouting {
  int64_t tokens = 0;
  std::vector<int64_t> sequences;                   // lengths, ascending
  std::vector<ExpertChances> chances;               // [L] tokens that chose an expert / tokens; of dense layers empty
  std::vector<std::vector<std::vector<Gap>>> gaps;  // [L][E]
  std::vector<std::string> files;                   // what the text was called; the caller's to set
};
MeasuredRouting Summarize(const RoutedText& text);

// Runs the model over the text as Evaluate does. Errors: those of Evaluate, a dense model. Resets ctx.arena.
Result<MeasuredRouting> MeasureRouting(Model& model, std::span<const Document> documents, const EvaluateOptions& options,
                                       ExecContext& ctx);

// The longest run of tokens that is taken from one sequence: `wanted`, or less where sequences of so many hold less than half
// of the text. Longer runs are made of several of these, as if of several texts.
int64_t RunOf(const MeasuredRouting& routing, int64_t wanted);

// Experts are spread over ranks in blocks, in their order; the one that is chosen most is what all others wait for. 1: all.
ExpertChances BusiestRank(const ExpertChances& chances, int64_t ranks);

// Experts of each layer that a step touches, of `ranks` such steps together those of the busiest rank: the mean over all places
// where the runs of the step (Step::rows_per_sequence) could begin, each by itself; counted, not drawn. [L], 0 of dense layers.
// Within k and min(E, tokens k), and never less of a larger batch.
std::vector<double> DistinctExpertsOf(const MeasuredRouting& routing, const Step& step, int64_t ranks = 1);

}  // namespace moe
