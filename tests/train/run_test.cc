#include <gtest/gtest.h>
#include <unistd.h>

#include "moe/model/load.h"
#include "testing/matchers.h"
#include "tests/train/run_fixture.h"

namespace moe {
namespace {

using test::ExpectSameRun;
using test::RunTest;
using test::TempDir;

TEST_F(RunTest, LeavesAModelMetricsAndTheRecipe) {
  std::vector<int64_t> evaluated;
  RunInfo info;
  const auto summary =
      Run("a", false, {},
          {.on_start = [&](const RunInfo& begun) { info = begun; },
           .on_validation = [&](const StepMetrics& metrics, const ValidationMetrics&) { evaluated.push_back(metrics.step); }});
  ASSERT_TRUE(summary) << summary.error().Message();
  EXPECT_FALSE(summary->interrupted);
  EXPECT_EQ(summary->step, 12);
  EXPECT_EQ(summary->tokens, 12 * 64);
  EXPECT_EQ(evaluated, (std::vector<int64_t>{4, 8, 12}));
  EXPECT_EQ(info.train_bytes, std::ssize(test::ReadFile(dir_ / "train.txt")));
  EXPECT_EQ(info.validation_tokens, std::ssize(test::ReadFile(dir_ / "valid.txt")));

  const auto lines = test::Metrics(Folder("a"));
  ASSERT_EQ(lines.size(), 12u);
  double best = 1e9;
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["step"], i + 1);
    EXPECT_EQ(lines[i].contains("validation_loss"), (i + 1) % 4 == 0);
    if (lines[i].contains("validation_loss")) best = std::min(best, lines[i]["validation_loss"].get<double>());
  }
  EXPECT_EQ(summary->best_loss, best);
  EXPECT_LT(lines.back()["loss"], lines.front()["loss"]);

  ThreadPool pool(1);
  Arena arena;
  ExecContext ctx{pool, arena, *SupportedKernelTables().front()};
  for (const char* folder : {"a", "a/best"}) {
    const auto model = LoadModel(Folder(folder), {.format = DType::kF32}, ctx);
    ASSERT_TRUE(model) << model.error().Message();
    EXPECT_TRUE(Tokenizer::Load(Folder(folder)));
  }
  const auto own = LoadRecipe(Folder("a") + "/recipe.toml");
  ASSERT_TRUE(own) << own.error().Message();
  EXPECT_EQ(FirstDifference(*own, *LoadRecipe(dir_ / "r.toml")), "");
}

TEST_F(RunTest, ResumedEqualsNeverStoppedBitForBit) {
  ASSERT_TRUE(Run("whole"));
  for (const int64_t stop : {0, 1, 4, 7, 11, 12}) {
    SCOPED_TRACE(stop);
    const std::string name = fmt::format("stopped{}", stop);
    const auto stopped = Run(name, false, {}, StopAfter(stop));
    ASSERT_TRUE(stopped) << stopped.error().Message();
    EXPECT_TRUE(stopped->interrupted);  // at 12, before the last evaluation was done
    EXPECT_EQ(stopped->step, stop);
    const auto resumed = Run(name, true);
    ASSERT_TRUE(resumed) << resumed.error().Message();
    EXPECT_EQ(resumed->step, 12);
    ExpectSameRun(Folder(name), Folder("whole"));
  }
}

// metrics.jsonl tells of every loss that has a coefficient.
TEST_F(RunTest, LossesInUseAreInTheMetrics) {
  ASSERT_TRUE(Run("a", false, {.sets = {"train.steps=2", "router.sequence_loss=0.001", "router.global_loss=0.001"}}));
  const std::string text = ReadFile(Folder("a") + "/metrics.jsonl").value();
  const auto line = nlohmann::json::parse(text.substr(0, text.find('\n')));
  for (const char* key : {"sequence_loss", "global_loss"}) {
    EXPECT_GE(line.at(key).get<double>(), 0.9) << key;  // 1 at perfect balance
    EXPECT_LE(line.at(key).get<double>(), 4) << key;
    EXPECT_TRUE(line["layers"][1].contains(key)) << key;
  }
  EXPECT_FALSE(line.contains("gshard_loss"));
}

TEST_F(RunTest, ResumedEqualsNeverStoppedWhereIdleExpertsAreSkipped) {
  const RecipeOverrides sets{
      .sets = {"train.skip_idle_experts=true", "model.experts=48", "model.top_k=1", "router.normalize=false"}};
  ASSERT_TRUE(Run("whole", false, sets));
  const auto metrics = test::Metrics(Folder("whole"));
  EXPECT_TRUE(std::ranges::any_of(metrics[5]["layers"][0]["tokens_per_expert"], [](const auto& n) { return n == 0; }));
  ASSERT_TRUE(Run("stopped", false, sets, StopAfter(5)));
  ASSERT_TRUE(Run("stopped", true, sets));
  ExpectSameRun(Folder("stopped"), Folder("whole"));
  ExpectError(Run("stopped", true, {.sets = {"train.skip_idle_experts=false", sets.sets[1], sets.sets[2], sets.sets[3]}}),
              dir_ / "r.toml train.skip_idle_experts", "got false, expected true");
}

TEST_F(RunTest, StoppedWithinAnEvaluationDoesItAgain) {
  ASSERT_TRUE(Run("whole"));
  for (const int64_t at : {4, 12}) {
    SCOPED_TRACE(at);
    const std::string name = fmt::format("stopped{}", at);
    int64_t step = 0;
    bool evaluating = false;
    const auto stopped = Run(name, false, {},
                             {.on_step = [&](const StepMetrics& metrics) { step = metrics.step; },
                              .on_evaluating = [&](int64_t, int64_t) { evaluating = true; },
                              .on_validation = [&](const StepMetrics&, const ValidationMetrics&) { evaluating = false; },
                              .stop_requested = [&] { return evaluating && step == at; }});
    ASSERT_TRUE(stopped) << stopped.error().Message();
    EXPECT_TRUE(stopped->interrupted);
    ASSERT_TRUE(Run(name, true));
    ExpectSameRun(Folder(name), Folder("whole"));
  }
}

TEST_F(RunTest, ResumingNeedsNoRecipeAndMayChangeWhatNumbersDoNotDependOn) {
  ASSERT_TRUE(Run("whole"));
  ASSERT_TRUE(Run("b", false, {}, StopAfter(5)));
  ThreadPool pool(2);
  Arena arena;
  ExecContext ctx{pool, arena, *SupportedKernelTables().front()};
  const auto resumed =
      RunTraining({.overrides = {.sets = {"train.checkpoint_every=0"}}, .folder = Folder("b"), .resume = true}, {}, ctx);
  ASSERT_TRUE(resumed) << resumed.error().Message();
  EXPECT_TRUE(test::ReadFile(Folder("b") + "/model.safetensors") == test::ReadFile(Folder("whole") + "/model.safetensors"));
  EXPECT_EQ(test::Metrics(Folder("b")), test::Metrics(Folder("whole")));
}

TEST_F(RunTest, AFinishedRunResumesToNothingAndRepairsTheModel) {
  ASSERT_TRUE(Run("a"));
  const std::string model = test::ReadFile(Folder("a") + "/model.safetensors");
  std::filesystem::remove(Folder("a") + "/model.safetensors");
  const auto again = Run("a", true);
  ASSERT_TRUE(again) << again.error().Message();
  EXPECT_FALSE(again->interrupted);
  EXPECT_TRUE(test::ReadFile(Folder("a") + "/model.safetensors") == model);
}

TEST_F(RunTest, ADamagedCheckpointFallsBackToTheOneBefore) {
  ASSERT_TRUE(Run("whole"));
  ASSERT_TRUE(Run("a", false, {}, StopAfter(8)));
  const std::string path = Folder("a") + "/train_state", bytes = test::ReadFile(path);
  test::WriteFile(path, bytes.substr(0, bytes.size() / 2));
  std::vector<std::string> notes;
  const auto resumed = Run("a", true, {}, {.on_note = [&](const std::string& note) { notes.push_back(note); }});
  ASSERT_TRUE(resumed) << resumed.error().Message();
  ASSERT_FALSE(notes.empty());
  EXPECT_NE(notes[0].find("going on from the checkpoint before it, of step 6"), std::string::npos) << notes[0];
  ExpectSameRun(Folder("a"), Folder("whole"));
}

TEST_F(RunTest, RefusesAFolderThatHoldsARun) {
  ASSERT_TRUE(Run("a", false, {}, StopAfter(1)));
  const std::string before = test::ReadFile(Folder("a") + "/train_state");
  ExpectError(Run("a"), Folder("a"), "already holds a run (train_state)");
  EXPECT_TRUE(test::ReadFile(Folder("a") + "/train_state") == before);
  std::filesystem::create_directory(Folder("model"));
  test::WriteFile(Folder("model") + "/model.safetensors", "mine");
  ExpectError(Run("model"), Folder("model"), "already holds model.safetensors, which a run writes");
  EXPECT_EQ(test::ReadFile(Folder("model") + "/model.safetensors"), "mine");
}

TEST_F(RunTest, RefusesAFolderItCannotWriteTo) {
  test::WriteFile(Folder("file"), "x");
  ExpectError(Run("file"), Folder("file"), "expected a folder");
  ExpectError(Run("file/deeper"), Folder("file/deeper"), "expected a folder");
}

TEST_F(RunTest, RefusesAFolderWithoutPermission) {
  if (geteuid() == 0) GTEST_SKIP() << "root may write anywhere";
  std::filesystem::create_directory(Folder("locked"));
  std::filesystem::permissions(Folder("locked"), std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  ExpectError(Run("locked/run"), Folder("locked/run"), "Permission denied");
}

TEST_F(RunTest, NothingIsWrittenBeforeInputIsGood) {
  test::WriteFile(dir_ / "train.txt", "short");
  ExpectError(Run("a"), dir_ / "train.txt",
              "got 5 tokens of training text in it, expected at least one window of train.context 16");
  test::WriteFile(dir_ / "train.txt", "");
  ExpectError(Run("a"), dir_ / "train.txt", "is empty");
  test::WriteFile(dir_ / "train.txt", std::string("a\0b", 3));
  ExpectError(Run("a"), dir_ / "train.txt", "is binary");
  test::WriteFile(dir_ / "train.txt", "caf\xe9 au lait, caf\xe9 au lait");
  ExpectError(Run("a"), dir_ / "train.txt", "is not UTF-8");
  std::filesystem::remove(dir_ / "train.txt");
  ExpectError(Run("a"), dir_ / "train.txt", "No such file");
  ExpectError(Run("a", false, {.data = {dir_ / "valid.txt"}, .validation = {dir_ / "valid.txt"}}),
              dir_ / "r.toml" + std::string(" data.validation"), "not among data.files too");
  ExpectError(Run("a", false, {.sets = {"data.files=[]"}}), "--set data.files", "got no file");
  ExpectError(Run("a", true), Folder("a"), "got no checkpoint there (train_state)");
  EXPECT_FALSE(std::filesystem::exists(Folder("a")));
}

TEST_F(RunTest, DataWithoutValidationIsCut) {
  std::filesystem::remove(dir_ / "valid.txt");  // the recipe's, which no longer counts
  const RecipeOverrides data{.data = {dir_ / "train.txt"}};
  RunInfo info;
  std::vector<std::string> notes;
  const auto whole = Run("whole", false, data,
                         {.on_note = [&](const std::string& note) { notes.push_back(note); },
                          .on_start = [&](const RunInfo& begun) { info = begun; }});
  ASSERT_TRUE(whole) << whole.error().Message();
  const auto size = std::ssize(test::ReadFile(dir_ / "train.txt"));
  EXPECT_EQ(info.train_bytes + info.validation_bytes, size);
  EXPECT_GE(info.validation_bytes, size * 2 / 100);
  EXPECT_LE(info.validation_bytes, size * 4 / 100);
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_NE(notes[0].find("in 1 passages, cut out of it; --validation names other text"), std::string::npos) << notes[0];
  EXPECT_EQ(whole->best_step > 0, true);
  // stopped and resumed, with and without the same flags, and repeated from its own recipe
  ASSERT_TRUE(Run("b", false, data, StopAfter(5)));
  ASSERT_TRUE(Run("b", true, data));
  ExpectSameRun(Folder("b"), Folder("whole"));
  ASSERT_TRUE(Run("c", false, data, StopAfter(5)));
  ThreadPool pool(1);
  Arena arena;
  ExecContext ctx{pool, arena, *SupportedKernelTables().front()};
  ASSERT_TRUE(RunTraining({.folder = Folder("c"), .resume = true}, {}, ctx));
  ExpectSameRun(Folder("c"), Folder("whole"));
  // going on with other validation text changes no weight
  test::WriteFile(dir_ / "valid.txt", test::TinyText(2, 300));
  ASSERT_TRUE(Run("e", false, data, StopAfter(5)));
  const auto other = Run("e", true, {.data = {dir_ / "train.txt"}, .validation = {dir_ / "valid.txt"}});
  ASSERT_TRUE(other) << other.error().Message();
  EXPECT_TRUE(test::ReadFile(Folder("e") + "/model.safetensors") == test::ReadFile(Folder("whole") + "/model.safetensors"));
  ASSERT_TRUE(RunTraining({.recipe = Folder("whole") + "/recipe.toml", .folder = Folder("d")}, {}, ctx));
  ExpectSameRun(Folder("d"), Folder("whole"));
  // also by --set, without the recipe; but what was cut stays cut
  ASSERT_TRUE(Run("f", false, data, StopAfter(5)));
  const auto resume = [&](const std::string& set) {
    return RunTraining({.overrides = {.sets = {set}}, .folder = Folder("f"), .resume = true}, {}, ctx);
  };
  ExpectError(resume("data.validation_share=0"), Folder("f") + "/recipe.toml data.validation_share", "got 0, expected 0.03");
  const auto set = resume(fmt::format("data.validation=[\"{}\"]", dir_ / "valid.txt"));
  ASSERT_TRUE(set) << set.error().Message();
  EXPECT_TRUE(test::ReadFile(Folder("f") + "/model.safetensors") == test::ReadFile(Folder("whole") + "/model.safetensors"));
}

TEST_F(RunTest, TextThatMovedIsNamedByDataAlone) {
  ASSERT_TRUE(Run("whole"));
  ASSERT_TRUE(Run("a", false, {}, StopAfter(5)));
  std::filesystem::rename(dir_ / "train.txt", dir_ / "moved.txt");
  const auto resumed = Run("a", true, {.data = {dir_ / "moved.txt"}});
  ASSERT_TRUE(resumed) << resumed.error().Message();
  EXPECT_TRUE(test::ReadFile(Folder("a") + "/best/model.safetensors") ==
              test::ReadFile(Folder("whole") + "/best/model.safetensors"));
  EXPECT_EQ(test::Metrics(Folder("a")), test::Metrics(Folder("whole")));  // on the same validation text
}

TEST_F(RunTest, TheBestIsOfTheTextThatIsValidatedOn) {
  ASSERT_TRUE(Run("a", false, {}, StopAfter(5)));
  const std::string best = Folder("a") + "/best/model.safetensors", before = test::ReadFile(best);
  std::string hard;  // nothing that the training text holds
  for (int i = 0; i < 300; ++i) hard += static_cast<char>('A' + i * i % 26);
  test::WriteFile(dir_ / "hard.txt", hard);
  const auto resumed = Run("a", true, {.validation = {dir_ / "hard.txt"}});
  ASSERT_TRUE(resumed) << resumed.error().Message();
  const auto lines = test::Metrics(Folder("a"));
  const double first = lines[3]["validation_loss"], second = lines[7]["validation_loss"], third = lines[11]["validation_loss"];
  ASSERT_GT(std::min(second, third), first);
  EXPECT_EQ(resumed->best_loss, std::min(second, third));
  EXPECT_EQ(resumed->best_step, second <= third ? 8 : 12);
  EXPECT_FALSE(test::ReadFile(best) == before);
  EXPECT_EQ(test::ReadFile(best) == test::ReadFile(Folder("a") + "/model.safetensors"), third < second);
}

// Killed right after the first checkpoint: --resume makes anew what is not there yet.
TEST_F(RunTest, TheFirstCheckpointAloneIsEnough) {
  const RecipeOverrides bpe{.sets = {"tokenizer.kind=bpe", "tokenizer.vocab_size=270"}};
  ASSERT_TRUE(Run("whole", false, bpe));
  const std::vector<std::string> after = {"tokenizer_config.json", "tokenizer.json", "recipe.toml"};
  for (size_t missing = 0; missing <= after.size(); ++missing) {
    const std::string name = fmt::format("killed{}", missing);
    ASSERT_TRUE(Run(name, false, bpe, StopAfter(0)));
    for (size_t i = 0; i < missing; ++i) std::filesystem::remove(Folder(name) + "/" + after[i]);
    ExpectError(Run(name, false, bpe), Folder(name), "already holds a run (train_state)");
    ThreadPool pool(1);
    Arena arena;
    ExecContext ctx{pool, arena, *SupportedKernelTables().front()};
    const auto resumed = RunTraining({.folder = Folder(name), .resume = true}, {}, ctx);
    ASSERT_TRUE(resumed) << resumed.error().Message();
    ExpectSameRun(Folder(name), Folder("whole"));
    EXPECT_TRUE(test::ReadFile(Folder(name) + "/tokenizer_config.json") ==
                test::ReadFile(Folder("whole") + "/tokenizer_config.json"));
  }
}

TEST_F(RunTest, ARunThatCameAndWentMeanwhileIsNotWrittenOver) {
  const RecipeOverrides bpe{.sets = {"tokenizer.kind=bpe", "tokenizer.vocab_size=270"}};
  const RunObserver in_long_work{.on_note = [&](const std::string&) {
    if (!std::filesystem::exists(Folder("a"))) {
      EXPECT_TRUE(Run("a"));
    }
  }};
  const auto late = Run("a", false, bpe, in_long_work);
  ExpectError(late, Folder("a"), "already holds a run (train_state)");
  EXPECT_EQ(test::Metrics(Folder("a")).size(), 12u);
  EXPECT_EQ(Tokenizer::Load(Folder("a"))->vocab_size(), Tokenizer::Bytes().vocab_size());
}

TEST_F(RunTest, SaysWhatCuttingLeaves) {
  test::WriteFile(dir_ / "train.txt", test::TinyText(1, 600));
  const RecipeOverrides half{
      .sets = {"data.validation_share=0.5", "model.context=400", "train.batch_tokens=400", "train.micro_batch_tokens="},
      .data = {dir_ / "train.txt"}};
  ExpectError(Run("a", false, half), dir_ / "train.txt",
              "besides the validation text cut out of it (--set data.validation_share=0 keeps all), expected at least");
  std::vector<std::string> notes;
  const auto both = Run("b", false, {.sets = {"data.validation_share=0.1"}},
                        {.on_note = [&](const std::string& note) { notes.push_back(note); }});
  ASSERT_TRUE(both) << both.error().Message();
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_NE(notes[0].find("not used: passages cut out of the text"), std::string::npos) << notes[0];
}

TEST_F(RunTest, ResumeRefusesAnotherRun) {
  ASSERT_TRUE(Run("a", false, {}, StopAfter(5)));
  const std::string before = test::ReadFile(Folder("a") + "/train_state"),
                    metrics = test::ReadFile(Folder("a") + "/metrics.jsonl");
  ExpectError(Run("a", true, {.sets = {"train.lr=0.5"}}), dir_ / "r.toml" + std::string(" train.lr"),
              "got 0.5, expected 0.01: the run in ");
  ExpectError(Run("a", true, {.sets = {"model.experts=8"}}), dir_ / "r.toml" + std::string(" model.experts"),
              "got 8, expected 4");
  ExpectError(Run("a", true, {}, {}, SupportedKernelTables().back()), Folder("a"),
              fmt::format("got the instruction set {}, expected {}", SupportedKernelTables().back()->name,
                          SupportedKernelTables().front()->name));
  test::WriteFile(dir_ / "train.txt", test::TinyText(9, 3000));
  ExpectError(Run("a", true), dir_ / "train.txt", "got other training text");
  test::WriteFile(dir_ / "train.txt", test::TinyText(1, 3000));
  ASSERT_TRUE(Tokenizer::FromMerges(std::vector<BpeMerge>{{'a', 't', 256}}).Save(Folder("a")));
  ExpectError(Run("a", true), Folder("a") + "/tokenizer.json", "got another tokenizer");
  ASSERT_TRUE(Tokenizer::Bytes().Save(Folder("a")));
  EXPECT_TRUE(test::ReadFile(Folder("a") + "/train_state") == before);
  EXPECT_EQ(test::ReadFile(Folder("a") + "/metrics.jsonl"), metrics);
  EXPECT_TRUE(Run("a", true));
}

TEST_F(RunTest, DivergenceStopsAndKeepsTheLastGoodCheckpoint) {
  const auto result =
      Run("a", false, {.sets = {"train.lr=1e30", "train.clip=0", "train.warmup=0", "train.checkpoint_every=0"}});
  ASSERT_FALSE(result);
  EXPECT_TRUE(result.error().where.starts_with("step ")) << result.error().Message();
  EXPECT_NE(result.error().what.find("try a lower train.lr"), std::string::npos) << result.error().Message();
  EXPECT_NE(result.error().what.find("the checkpoint of step 0 in " + Folder("a") + " is good"), std::string::npos)
      << result.error().Message();
  EXPECT_NE(result.error().what.find("begun anew with another --out"), std::string::npos);
  EXPECT_TRUE(OpenTrainState(Folder("a")));
  // in the calibration nothing has been begun yet
  const auto calibrating = Run("b", false, {.sets = {"train.lr=1e30", "train.clip=0", "train.warmup=0"}, .minutes = 0.004});
  ASSERT_FALSE(calibrating);
  EXPECT_NE(calibrating.error().what.find("try a lower train.lr"), std::string::npos) << calibrating.error().Message();
  EXPECT_EQ(calibrating.error().what.find("begun anew"), std::string::npos) << calibrating.error().Message();
}

TEST_F(RunTest, MinutesAreTurnedIntoStepsOnce) {
  const auto summary = Run("a", false, {.minutes = 0.004});
  ASSERT_TRUE(summary) << summary.error().Message();
  EXPECT_GE(summary->steps, 1);
  EXPECT_EQ(summary->step, summary->steps);
  const auto own = LoadRecipe(Folder("a") + "/recipe.toml");
  ASSERT_TRUE(own) << own.error().Message();
  EXPECT_EQ(own->train.steps, summary->steps);
  // the calibration left no trace: the same steps asked for by number give the same model
  ASSERT_TRUE(Run("b", false, {.sets = {fmt::format("train.steps={}", summary->steps)}}));
  EXPECT_TRUE(test::ReadFile(Folder("a") + "/model.safetensors") == test::ReadFile(Folder("b") + "/model.safetensors"));
  EXPECT_TRUE(Run("a", true, {.minutes = 0.004}));  // the same command line resumes
}

TEST_F(RunTest, WorksWithoutValidationAndWithBpe) {
  const auto summary = Run("a", false, {.sets = {"data.validation=[]", "tokenizer.kind=bpe", "tokenizer.vocab_size=270"}});
  ASSERT_TRUE(summary) << summary.error().Message();
  EXPECT_EQ(summary->best_step, 0);
  EXPECT_FALSE(std::filesystem::exists(Folder("a") + "/best"));
  const auto tokenizer = Tokenizer::Load(Folder("a"));
  ASSERT_TRUE(tokenizer);
  EXPECT_EQ(tokenizer->vocab_size(), 270);
}

}  // namespace
}  // namespace moe
