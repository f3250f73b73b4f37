// What the program once told its users wrongly: each of these failed on the code of its day.

#include <filesystem>

#include "tests/cli/run_moe.h"
#include "tests/train/tiny_run.h"

namespace moe::test {
namespace {

namespace fs = std::filesystem;

// `moe generate -m X` used to ask for --model, and not to say that there is no -m.
TEST(FrontDoor, AnUnknownFlagIsToldBeforeAMissingOne) {
  for (const char* command : {"train", "eval", "generate", "inspect", "sweep", "probe", "bench", "trace"}) {
    SCOPED_TRACE(command);
    ExpectFails(RunMoe({command, "--frobnicate", "X"}), 2, "flags", "got '--frobnicate', expected one of --help");
  }
  for (const char* command : {"eval", "generate", "inspect", "sweep"}) {
    SCOPED_TRACE(command);
    ExpectFails(RunMoe({command, "-m", "X"}), 2, "flags", "got '-m', expected '--model'?");
  }
  ExpectFails(RunMoe({"eval", "-d", "X"}), 2, "flags", "got '-d', expected '--data'?");
  ExpectFails(RunMoe({"eval", "--modle", "X", "--data", "Y"}), 2, "flags", "got '--modle', expected '--model'?");
  ExpectFails(RunMoe({"eval", "-z"}), 2, "flags", "got '-z', expected one of --help");
}

// Calibration evaluates once, to know how long that takes; logs used to show it, before the model's own lines.
TEST(FrontDoor, CalibrationDoesNotSayThatItEvaluates) {
  TempDir dir;
  WriteTinyRun(dir);
  const RunResult result = RunMoe({"train", dir / "r.toml", "--minutes", "0.004", "--out", dir / "run"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const size_t model = result.out.find("model  ");
  ASSERT_NE(model, std::string::npos) << result.out;
  EXPECT_EQ(result.out.substr(0, model).find("evaluating"), std::string::npos) << result.out;
}

// The bare name of a recipe used to end in "No such file or directory", or once demo/ was there in "Is a directory".
TEST(FrontDoor, TheNameOfARecipeIsCompleted) {
  TempDir dir;
  fs::create_directories(dir / "recipes");
  WriteFile(dir / "recipes/tiny.toml", kTinyRecipe);
  const RunOptions here{.folder = dir.path().string()};
  for (const char* name : {"tiny", "tiny.toml", "recipes/tiny"}) {
    ExpectFails(RunMoe({"train", name}, here), 1, name, "got no such file, expected recipes/tiny.toml?");
  }
  fs::create_directories(dir / "tiny");
  ExpectFails(RunMoe({"train", "tiny"}, here), 1, "tiny", "got a folder, expected recipes/tiny.toml?");
  ExpectFails(RunMoe({"train", "teeny"}, here), 1, "teeny", "No such file or directory");
}

// A recipe copied elsewhere looks for its texts there. It used to say no more than that they are missing, and of the corpus
// that scripts/corpus.py builds it, which it does in another folder.
TEST(FrontDoor, ACopiedRecipeSaysWhereItsPathsLead) {
  TempDir dir;
  const auto recipe = [](const std::string& data) {
    std::string text = kTinyRecipe;
    for (const char* name : {"train.txt", "valid.txt"}) text.replace(text.find(name), std::string(name).size(), data + name);
    return text;
  };
  fs::create_directories(dir / "copies");
  const std::string copy = dir / "copies/r.toml", relative = "data.files says \"../texts/train.txt\", which is relative to";
  WriteFile(copy, recipe("../texts/"));
  ExpectFails(RunMoe({"train", copy}), 1, dir / "texts/train.txt",
              "cannot open: No such file or directory; " + copy + ":16 " + relative + " the recipe's folder\n");
  fs::create_directories(dir / "texts");
  WriteFile(dir / "texts/train.txt", TinyText(1, 3000));
  ExpectFails(RunMoe({"train", copy}), 1, dir / "texts/valid.txt",
              copy + ":17 data.validation says \"../texts/valid.txt\", which");
  // what a flag names is relative to the working folder
  const RunResult flag = RunMoe({"train", "copies/r.toml", "--data", "texts/none.txt"}, {.folder = dir.path().string()});
  ExpectFails(flag, 1, dir / "texts/none.txt", "No such file or directory\n");

  std::string file = recipe("../texts/");
  file.replace(file.find("kind = \"bytes\""), 14, "kind = \"file\"\nfile = \"tokenizer.json\"");
  WriteFile(copy, file);
  WriteFile(dir / "texts/valid.txt", TinyText(2, 300));
  ExpectFails(RunMoe({"train", copy}), 1, dir / "copies/tokenizer.json",
              "tokenizer.file says \"tokenizer.json\", which is relative to the recipe's folder");

  WriteFile(copy, recipe("../data/debian-prose-1/"));
  const std::string corpus = dir / "data/debian-prose-1/train.txt";
  ExpectFails(RunMoe({"train", copy}), 1, corpus,
              "relative to the recipe's folder; scripts/corpus.py --out " + (dir / "data") + " builds it");
  fs::create_directories(dir / "scripts");
  WriteFile(dir / "scripts/corpus.py", "");
  ExpectFails(RunMoe({"train", copy}), 1, corpus, "No such file or directory; scripts/corpus.py builds it\n");
}

}  // namespace
}  // namespace moe::test
