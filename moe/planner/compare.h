#pragma once
// The bake-off: variants of one recipe trained on the same text, in the same order, for as many steps, with several seeds; what
// became of each, beside one another. Every run is an ordinary one (train/run.h) in FOLDER/<variant>/seed-<seed>, so all of it
// can be stopped and goes on where it was.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "moe/train/run.h"

namespace moe {

struct CompareOptions {
  std::vector<std::string> recipes;     // files; the first is the base, each further one a variant
  std::vector<RecipeVariant> variants;  // besides those of the first recipe
  RecipeOverrides overrides;            // for every run
  std::string folder;
  std::string against;  // the variant that differences are taken from; empty: the base
  int64_t seeds = 2;    // the recipe's train.seed and those after it
  bool keep_models = false;
};

// "NAME: key=value key=value", as flags have it.
Result<RecipeVariant> ParseVariant(const std::string& text, const std::string& where);

struct CompareVariant {
  std::string name, axis;
  std::vector<std::string> sets;  // what it changes, for people
  std::string path;               // its recipe
  RecipeVariant given;            // what the recipe is changed by; empty for the base
  Recipe recipe;                  // of the first seed
  size_t runs_of = 0;             // whose runs these are: its own index, or of an earlier variant of the same recipe
};

struct ComparePlan {
  CompareOptions options;
  std::vector<CompareVariant> variants;  // the base first
  std::vector<std::string> axes;         // in their order; the base has none
  std::vector<int64_t> seeds;
  size_t against = 0;  // a variant's index

  const CompareVariant& base() const { return variants.front(); }
  std::string FolderOf(size_t variant, int64_t seed) const;  // of its runs
};

// Reads and checks everything that can be before the first run: variants that differ in what makes runs comparable (text,
// tokenizer, steps, batch, seed, evaluations), shapes that make no model, and folders whose runs have another recipe are
// refused, by one line that names variant or folder and key.
Result<ComparePlan> MakeComparePlan(const CompareOptions& options);

struct CompareRun {
  size_t variant = 0;
  int64_t seed = 0;
  int64_t index = 0, count = 0;  // of all runs
  bool resumed = false;
};

// Whoever watches. All may be empty.
struct CompareObserver {
  std::function<void(const CompareRun&)> on_begin;
  std::function<void(const CompareRun&, const RunInfo&)> on_start;  // the steps are known
  std::function<void(const CompareRun&, const StepMetrics&)> on_step;
  std::function<void(const CompareRun&, const std::string& what)> on_note;                         // something long began
  std::function<void(const CompareRun&, double bits_per_byte, const std::string& failed)> on_end;  // empty: it went well
  std::function<bool()> stop_requested;
};

// Trains what is not trained yet: the first seed of every variant, then the second, so that whenever it is stopped like is
// beside like. Minutes become steps in the base's first run; all others take as many. A run whose numbers go wrong (not finite)
// is a result, written down; other errors end the work. Finished runs keep recipe.toml, metrics.jsonl and summary.json; the
// base's first one also its checkpoint, which step times of later variants are measured beside. False: stopped.
Result<bool> RunComparison(ComparePlan& plan, const CompareObserver& observer, ExecContext& ctx);

}  // namespace moe
