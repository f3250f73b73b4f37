// moe train through the front door.

#include <signal.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <tuple>

#include "moe/files/tokenizer.h"
#include "moe/model/evaluate.h"
#include "tests/cli/run_moe.h"
#include "tests/train/tiny_run.h"

namespace moe::test {
namespace {

using nlohmann::json;

class TrainCommand : public testing::Test {
 protected:
  TrainCommand() { WriteTinyRun(dir_); }

  std::vector<std::string> Arguments(const std::string& folder, std::vector<std::string> more = {}) const {
    std::vector<std::string> all = {"train", dir_ / "r.toml", "--out", dir_ / folder, "--threads", "1"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  RunResult Train(const std::string& folder, std::vector<std::string> more = {}, const RunOptions& options = {}) {
    return RunMoe(Arguments(folder, std::move(more)), options);
  }
  // An error after work began: one line on stderr, whatever stdout holds.
  static void ExpectStops(const RunResult& result, const std::string& where, const std::string& part) {
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_TRUE(result.err.starts_with("moe: [" + where)) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
  }

  TempDir dir_;
};

TEST_F(TrainCommand, TrainsAndSaysSo) {
  const RunResult result = Train("a");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  for (const char* part :
       {"4 experts of width 16, 2 per token", "step 12/12", "max/mean", "validation", "best", "moe generate"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << " in\n" << result.out;
  }
  // both losses beside tokens and seconds
  size_t at = result.out.find("\nstep      4  256 tokens, ");
  ASSERT_NE(at, std::string::npos) << result.out;
  const std::string line = result.out.substr(at + 1, result.out.find('\n', at + 1) - at - 1);
  at = 0;
  for (const char* part : {"s  loss ", "  validation ", " nats/token, ", " bits/byte"}) {  // in this order
    at = line.find(part, at);
    ASSERT_NE(at, std::string::npos) << part << " in\n" << line;
  }
  const size_t last = result.out.find("step 12/12  768 tokens, ");
  ASSERT_NE(last, std::string::npos) << result.out;
  EXPECT_EQ(result.out.find('\r'), std::string::npos);  // plain lines where there is no terminal
  for (const char* name :
       {"config.json", "model.safetensors", "tokenizer.json", "train_state", "metrics.jsonl", "recipe.toml"}) {
    EXPECT_TRUE(std::filesystem::exists((std::filesystem::path(dir_ / "a") / name))) << name;
  }
}

TEST_F(TrainCommand, JsonOnStdoutIsAlone) {
  const RunResult result = Train("a", {"--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json summary = json::parse(result.out);
  EXPECT_EQ(summary["step"], 12);
  EXPECT_EQ(summary["interrupted"], false);
  EXPECT_EQ(summary["tokens"], 12 * 64);
  EXPECT_GT(summary["bits_per_byte"], 0);
  EXPECT_LE(summary["best"]["bits_per_byte"], summary["bits_per_byte"]);
  EXPECT_GT(summary["parameters_total"], summary["parameters_active"]);
}

TEST_F(TrainCommand, EvalOfTheFolderSaysWhatTrainingSaid) {
  for (const char* dtype : {"f32", "bf16"}) {
    const std::string run = dtype;
    const RunResult trained = Train(run, {"--dtype", dtype, "--json", "-"});
    ASSERT_EQ(trained.exit_code, 0) << trained.err;
    const json summary = json::parse(trained.out);
    for (const auto& [folder, loss, bits] :
         {std::tuple(dir_ / run, summary["validation_loss"], summary["bits_per_byte"]),
          std::tuple(dir_ / run + "/best", summary["best"]["validation_loss"], summary["best"]["bits_per_byte"])}) {
      const RunResult result =
          RunMoe({"eval", "--model", folder, "--data", dir_ / "valid.txt", "--dtype", dtype, "--json", "-"});
      ASSERT_EQ(result.exit_code, 0) << result.err;
      const json evaluated = json::parse(result.out);
      EXPECT_EQ(evaluated["loss"], loss) << folder;  // bit for bit
      EXPECT_EQ(evaluated["bits_per_byte"], bits) << folder;
    }
  }
}

TEST_F(TrainCommand, FlagsReachTheRecipe) {
  const RunResult result =
      RunMoe({"train", "--data", dir_ / "valid.txt", "--validation", dir_ / "train.txt", "--dtype", "bf16", "--set",
              "train.steps=2", "model.experts=2", dir_ / "r.toml", "--out", dir_ / "a", "--threads", "2"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto recipe = LoadRecipe(dir_ / "a/recipe.toml");
  ASSERT_TRUE(recipe) << recipe.error().Message();
  EXPECT_EQ(recipe->data.files, (std::vector<std::string>{dir_ / "valid.txt"}));
  EXPECT_EQ(recipe->data.validation, (std::vector<std::string>{dir_ / "train.txt"}));
  EXPECT_EQ(recipe->train.dtype, DType::kBf16);
  EXPECT_EQ(recipe->train.steps, 2);
  EXPECT_EQ(recipe->model.experts, 2);
}

TEST_F(TrainCommand, TheFolderHasADefault) {
  const RunResult result = RunMoe({"train", "r.toml", "--set", "train.steps=1"}, {.folder = dir_.path().string()});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(std::filesystem::exists(dir_ / "runs/r/model.safetensors"));
}

// Rows, widths and experts enough for several chunks and tiles of every kind.
TEST_F(TrainCommand, ThreadsChangeNothing) {
  for (const char* dtype : {"f32", "bf16"}) {
    SCOPED_TRACE(dtype);
    for (const char* threads : {"1", "2", "3"}) {
      const RunResult result =
          RunMoe({"train", dir_ / "r.toml", "--out", dir_ / (std::string(dtype) + threads), "--threads", threads, "--dtype",
                  dtype, "--set", "model.hidden=96", "model.expert_width=80", "model.heads=3", "train.batch_tokens=1536",
                  "train.micro_batch_tokens=768", "train.steps=5"});
      ASSERT_EQ(result.exit_code, 0) << result.err;
    }
    for (const char* threads : {"2", "3"})
      ExpectSameRun(dir_ / (std::string(dtype) + "1"), dir_ / (std::string(dtype) + threads));
  }
}

TEST_F(TrainCommand, InterruptSavesAndSaysHowToGoOn) {
  ASSERT_EQ(Train("whole", {"--set", "train.steps=400", "train.checkpoint_every=0", "train.eval_every=0"}).exit_code, 0);
  for (const int signal : {SIGINT, SIGTERM}) {
    const std::string name = "it's stopped" + std::to_string(signal);
    std::vector<std::string> command =
        Arguments(name, {"--set", "train.steps=400", "train.checkpoint_every=0", "train.eval_every=0"});
    command.insert(command.begin(), MOE_BINARY);
    Subprocess process(command);
    ASSERT_TRUE(process.WaitForOutput("step "));
    process.Signal(signal);
    const RunResult result = process.Wait();
    EXPECT_EQ(result.exit_code, 130) << result.out;
    EXPECT_EQ(result.err, "");
    const std::string how =
        fmt::format("{} train --resume --out '{}'\n", MOE_BINARY, dir_ / fmt::format("it'\\''s stopped{}", signal));
    EXPECT_NE(result.out.find("nothing is lost, this goes on: " + how), std::string::npos) << result.out;
    const RunResult resumed = RunMoe({"train", "--resume", "--out", dir_ / name, "--threads", "1"});  // as it was told
    ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
    EXPECT_NE(resumed.out.find("going on after step"), std::string::npos);
    EXPECT_TRUE(ReadFile(dir_ / name + "/model.safetensors") == ReadFile(dir_ / "whole/model.safetensors"));
  }
}

TEST_F(TrainCommand, AFullDiskInTheMiddleOfACheckpointKeepsTheOneBefore) {
  ASSERT_EQ(Train("whole").exit_code, 0);
  const auto state_bytes = static_cast<int64_t>(std::filesystem::file_size(dir_ / "whole/train_state"));
  const RunOptions small_disk{.max_file_bytes = state_bytes / 2};
  // Room for half a checkpoint, from the first on: nothing to resume, but nothing that pretends to be.
  ExpectStops(Train("a", {}, small_disk), dir_ / "a/train_state", "File too large");
  EXPECT_FALSE(std::filesystem::exists(dir_ / "a/train_state"));
  ExpectFails(Train("a", {"--resume"}), 1, dir_ / "a", "got no checkpoint");
  ASSERT_EQ(Train("a").exit_code, 0);

  // The same from step 5 on.
  int64_t step = 0;
  const RunObserver stop_after_5{.on_step = [&](const StepMetrics& metrics) { step = metrics.step; },
                                 .stop_requested = [&] { return step >= 5; }};
  ThreadPool pool(1);
  Arena arena;
  ExecContext ctx{pool, arena, **SelectKernelTable()};
  ASSERT_TRUE(RunTraining({.recipe = dir_ / "r.toml", .folder = dir_ / "b"}, stop_after_5, ctx));
  const std::string before = ReadFile(dir_ / "b/train_state");
  const RunResult full = Train("b", {"--resume"}, small_disk);
  ExpectStops(full, dir_ / "b/train_state", "File too large");
  EXPECT_NE(full.err.find("the checkpoint of step 5 in " + dir_ / "b" + " is whole: --resume goes on"), std::string::npos)
      << full.err;
  EXPECT_TRUE(ReadFile(dir_ / "b/train_state") == before);
  ASSERT_EQ(Train("b", {"--resume"}).exit_code, 0);
  ExpectSameRun(dir_ / "b", dir_ / "whole");
}

// What the last checkpoint in `folder` is worth: its step, and its loss on the validation text.
std::pair<int64_t, double> StepAndLossOfCheckpoint(const TempDir& dir, const std::string& folder) {
  ThreadPool pool(1);
  Arena arena;
  ExecContext ctx{pool, arena, **SelectKernelTable()};
  const auto opened = OpenTrainState(folder);
  const auto tokenizer = Tokenizer::Load(folder);
  if (!opened || !tokenizer) return {-1, NAN};
  const auto recipe = ParseRecipe(opened->state.recipe, "recipe", folder);
  const auto config = MakeModelConfig(*recipe, tokenizer->vocab_size(), tokenizer->bos_id(), tokenizer->eos_id(), "recipe");
  Model model(*config, DType::kF32, /*training=*/true);
  Optimizer optimizer;
  optimizer.Reset(model.parameters());
  if (!ReadTrainState(*opened, model.parameters(), optimizer)) return {-1, NAN};
  model.Repack(ctx);
  const std::string text = ReadFile(dir / "valid.txt");
  const std::vector<int32_t> tokens = tokenizer->Encode(text);
  const std::vector<Document> documents = {{tokens, std::ssize(text)}};
  const auto evaluation = Evaluate(model, documents, {.batch = 4}, ctx);
  return {opened->state.step, evaluation ? evaluation->loss() : NAN};
}

TEST_F(TrainCommand, ALossThatIsNotANumberStops) {
  const double uniform = std::log(static_cast<double>(Tokenizer::Bytes().vocab_size()));
  for (const char* evaluate : {"train.eval_every=0", "train.eval_every=1"}) {
    for (const char* checkpoint : {"train.checkpoint_every=0", "train.checkpoint_every=1"}) {
      SCOPED_TRACE(std::string(evaluate) + " " + checkpoint);
      const std::string name = fmt::format("a{}{}", evaluate, checkpoint);
      const RunResult result = Train(name, {"--set", "train.lr=1e30", "train.clip=0", "train.warmup=0", checkpoint, evaluate});
      ExpectStops(result, "step ", "try a lower train.lr (now 1e+30)");
      EXPECT_NE(
          result.err.find("in a run begun anew with another --out; the checkpoint of step 0 in " + dir_ / name + " is good"),
          std::string::npos)
          << result.err;
      EXPECT_NE(result.err.find("layer"), std::string::npos) << "it should say where: " << result.err;
      EXPECT_EQ(result.err.find("nan"), std::string::npos) << result.err;
      const auto [step, loss] = StepAndLossOfCheckpoint(dir_, dir_ / name);
      EXPECT_EQ(step, 0);
      EXPECT_LT(loss, 1.2 * uniform);  // as weights that have seen nothing; those after the step give NaN
      EXPECT_FALSE(std::filesystem::exists(dir_ / name + "/best"));
    }
  }
}

TEST_F(TrainCommand, ADamagedCheckpointIsSaidAndPassedOver) {
  ASSERT_EQ(Train("whole").exit_code, 0);
  std::filesystem::copy(dir_ / "whole", dir_ / "a", std::filesystem::copy_options::recursive);
  const std::string bytes = ReadFile(dir_ / "a/train_state");
  WriteFile(dir_ / "a/train_state", bytes.substr(0, bytes.size() - 5));
  const RunResult resumed = Train("a", {"--resume"});
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_NE(resumed.out.find("train_state"), std::string::npos);
  EXPECT_NE(resumed.out.find("going on from the checkpoint before it, of step 9"), std::string::npos) << resumed.out;
  ExpectSameRun(dir_ / "a", dir_ / "whole");
}

}  // namespace
}  // namespace moe::test
