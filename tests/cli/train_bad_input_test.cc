// moe train on what users get wrong: one line, the right exit code, nothing written, nothing lost.

#include "moe/train/checkpoint.h"
#include "tests/cli/run_moe.h"
#include "tests/train/tiny_run.h"

namespace moe::test {
namespace {

namespace fs = std::filesystem;

class TrainBadInput : public testing::Test {
 protected:
  TrainBadInput() { WriteTinyRun(dir_); }

  RunResult Train(std::vector<std::string> more = {}) {
    std::vector<std::string> all = {"train", dir_ / "r.toml", "--out", dir_ / "run", "--threads", "1"};
    all.insert(all.end(), more.begin(), more.end());
    return RunMoe(std::move(all));
  }
  void ExpectNothingWritten() { EXPECT_FALSE(fs::exists(dir_ / "run")); }
  std::string Recipe(const std::string& key = "") const { return dir_ / "r.toml" + (key.empty() ? "" : " " + key); }

  TempDir dir_;
};

TEST_F(TrainBadInput, DataFiles) {
  WriteFile(dir_ / "empty", "");
  WriteFile(dir_ / "binary", std::string("text\0text", 9));
  WriteFile(dir_ / "latin1", "caf\xe9 au lait et encore un peu de texte");
  WriteFile(dir_ / "short", "a few bytes");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"missing", "No such file"},
      {"empty", "is empty"},
      {"binary", "is binary"},
      {"latin1", "is not UTF-8"},
      {"short", "got 11 tokens of training text in it, expected at least"},
      {"", "directory"}};
  for (const auto& [name, part] : cases) {
    ExpectFails(Train({"--data", dir_ / name}), 1, dir_ / name, part);
    if (name != "short") ExpectFails(Train({"--validation", dir_ / name}), 1, dir_ / name, part);
  }
  ExpectNothingWritten();
}

TEST_F(TrainBadInput, DevicesAndLinks) {
  const RunResult device = Train({"--data", "/dev/zero"});
  ExpectFails(device, 1, "/dev/zero", "got a device, expected a text file");
  ExpectFails(RunMoe({"train", "/dev/null", "--out", dir_ / "run"}), 1, "/dev/null", "got a device, expected a recipe");
  WriteFile(dir_ / "large.toml", std::string(1'000'001, '\n'));
  ExpectFails(RunMoe({"train", dir_ / "large.toml", "--out", dir_ / "run"}), 1, dir_ / "large.toml",
              "got 1000001 bytes, expected");
  fs::create_symlink(dir_ / "train.txt", dir_ / "symlink");
  fs::create_hard_link(dir_ / "train.txt", dir_ / "hardlink");
  for (const char* link : {"symlink", "hardlink"}) {
    ExpectFails(Train({"--validation", dir_ / link}), 1, Recipe("data.validation"), "not among data.files too");
  }
  const std::string corpus = dir_ / "debian-prose-1/train.txt";
  ExpectFails(Train({"--data", corpus}), 1, corpus,
              "No such file or directory; scripts/corpus.py --out " + dir_.path().string() + " builds it");
  ExpectNothingWritten();
}

TEST_F(TrainBadInput, Recipes) {
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = kTinyRecipe;
    text.replace(text.find(from), from.size(), to);
    WriteFile(dir_ / "r.toml", text);
    return Train();
  };
  const auto line = [&](int number, const std::string& key) { return fmt::format("{}:{} {}", dir_ / "r.toml", number, key); };
  ExpectFails(with("layers", "layer"), 1, line(3, "model.layer"),
              "got an unknown key, expected a recipe's, the nearest is model.layers");
  ExpectFails(with("lr = 0.01", "lr = \"high\""), 1, line(23, "train.lr"), "got 'high', expected a number above 0");
  ExpectFails(with("top_k = 2", "top_k = 5"), 1, line(8, "model.top_k"), "got 5, expected at most model.experts 4");
  ExpectFails(with("experts = 4", "experts = 0"), 1, line(7, "model.experts"), "got 0, expected 1 or more");
  ExpectFails(with("heads = 2", "heads = 32"), 1, Recipe("model.head_width"), "got 1, expected an even number");
  ExpectFails(with("heads = 2", "heads = 5"), 1, line(5, "model.heads"), "got 5, expected a divisor of model.hidden 32");
  ExpectFails(with("capacity_factor = 1.25", "capacity_factor = -1"), 1, line(28, "router.capacity_factor"),
              "got -1, expected a number of at least 0");
  ExpectFails(with("capacity_factor = 1.25", "policy = \"best\""), 1, line(28, "router.policy"),
              "got 'best', expected one of mixtral, olmoe");
  ExpectFails(with("expert_width = 16", "expert_width = 20"), 1, line(9, "model.expert_width"), "multiple of 16");
  ExpectFails(with("top_k = 2", "top_k = 1"), 1, line(8, "model.top_k"), "the router would get no gradient");
  ExpectFails(with("[train]", "[train"), 1, dir_ / "r.toml" + std::string(":19"), "got invalid TOML");
  ExpectFails(with("steps = 12", ""), 1, Recipe("train.steps"), "got nothing, expected train.steps or train.minutes");
  ExpectFails(with("kind = \"bytes\"", "vocab_size = 100"), 1, line(13, "tokenizer.vocab_size"),
              "got 100, expected a whole number in 257..");
  ExpectFails(RunMoe({"train", dir_ / "none.toml"}), 1, dir_ / "none.toml", "No such file");
  ExpectNothingWritten();
}

TEST_F(TrainBadInput, Flags) {
  ExpectFails(Train({"--sett", "a=b"}), 2, "flags", "'--sett'");
  ExpectFails(Train({"--set", "train.lr"}), 2, "--set", "got train.lr, expected key=value");
  ExpectFails(Train({"--set", "train.rl=1"}), 2, "--set", "the nearest is train.lr");
  ExpectFails(Train({"--set", "train.lr=-1"}), 2, "--set train.lr", "got -1, expected a number above 0");
  const std::vector<std::tuple<const char*, const char*, const char*>> sets = {
      {"router.capacity_factor=-1", "--set router.capacity_factor", "got -1, expected a number of at least 0"},
      {"model.top_k=0", "--set model.top_k", "got 0, expected a whole number in 1.."},
      {"model.top_k=5", "--set model.top_k", "got 5, expected at most model.experts 4"},
      {"model.experts=0", "--set model.experts", "got 0, expected 1 or more"},
      {"model.head_width=3", "--set model.head_width", "got 3, expected an even number"},
      {"model.kv_heads=3", "--set model.kv_heads", "got 3, expected a divisor of model.heads 2"},
      {"model.heads=3", "--set model.heads", "got 3, expected a divisor of model.hidden 32"},
      {"model.ffn_width=8", "--set model.ffn_width", "expected no such key: no layer is dense"},
      {"train.batch_tokens=100", "--set train.batch_tokens", "got 100, expected a multiple of the context 16"},
      {"train.warmup=1.5", "--set train.warmup", "got 1.5, expected whole steps"},
      {"train.min_lr=1", "--set train.min_lr", "got 1, expected at most train.lr 0.01"}};
  for (const auto& [set, where, part] : sets) ExpectFails(Train({"--set", set}), 2, where, part);
  // the flag is what is wrong, also where the key that no longer fits stands in the file
  ExpectFails(Train({"--set", "model.experts=1"}), 2, fmt::format("{}:8 model.top_k", dir_ / "r.toml"),
              "at most model.experts 1");
  ExpectFails(Train({"--set", "model.ffn=dense"}), 2, fmt::format("{}:7 model.experts", dir_ / "r.toml"), "no such key");
  ExpectFails(Train({"--set", "train.steps="}), 2, Recipe("train.steps"), "got nothing, expected train.steps or train.minutes");
  ExpectFails(Train({"--set", "model.expert_width=20"}), 2, "--set model.expert_width", "multiple of 16");
  ExpectFails(Train({"--set", "router.selection=expert_choice", "router.normalize=false"}), 2, "--set router.selection",
              "allow_noncausal = true allows it");
  ExpectFails(Train({"--data", "caf\xe9.txt"}), 2, "--data", "got a path that is not UTF-8");
  ExpectFails(Train({"--validation", "caf\xe9.txt"}), 2, "--validation", "got a path that is not UTF-8");
  ExpectFails(Train({"--set", "data.files=[]"}), 2, "--set data.files", "got no file");
  ExpectFails(Train({"--minutes", "0"}), 2, "--minutes", "got 0, expected a number above 0");
  ExpectFails(Train({"--minutes", "nan"}), 2, "--minutes", "expected");
  ExpectFails(Train({"--minutes", "1", "--set", "train.steps=9"}), 2, "--minutes", "got it with --set train.steps=9");
  ExpectFails(Train({"--minutes", "1", "--resume"}), 2, "--minutes", "got it with --resume");
  ExpectFails(Train({"--dtype", "f16"}), 2, "--dtype", "expected \"f32\" or \"bf16\"");
  ExpectFails(RunMoe({"train", dir_ / "r.toml", "--out", dir_ / "run", "--threads", "-1"}), 2, "--threads", "got -1");
  ExpectFails(RunMoe({"train"}), 2, "RECIPE", "got nothing, expected a recipe");
  ExpectFails(RunMoe({"train", "--resume"}), 2, "--out", "got nothing, expected the folder of the run");
  ExpectNothingWritten();
}

// What a run writes down as its recipe holds no value that only follows from others.
TEST_F(TrainBadInput, ChangesToARunsOwnRecipe) {
  ASSERT_EQ(Train({"--set", "train.micro_batch_tokens="}).exit_code, 0);
  const std::string own = dir_ / "run/recipe.toml";
  ExpectFails(Train({"--resume", "--set", "train.micro_batch_tokens=", "train.lr=1e-4"}), 1, Recipe("train.lr"),
              "got 0.0001, expected 0.01: the run in ");
  ExpectFails(RunMoe({"train", "--resume", "--out", dir_ / "run", "--set", "train.lr=1e-4"}), 1, own + " train.lr",
              "the run in " + dir_ / "run" + " was begun with it; --out names another");
  const RunResult again = RunMoe({"train", own, "--out", dir_ / "again", "--threads", "1", "--set", "train.lr=1e-4",
                                  "train.batch_tokens=32", "model.heads=4"});
  ASSERT_EQ(again.exit_code, 0) << again.err;
  const auto recipe = LoadRecipe(dir_ / "again/recipe.toml");
  ASSERT_TRUE(recipe);
  EXPECT_EQ(recipe->train.min_lr, 1e-4 / 10);
  EXPECT_EQ(recipe->train.micro_batch_tokens, 32);
  EXPECT_EQ(recipe->model.kv_heads, 4);
  EXPECT_EQ(recipe->model.head_width, 8);
  ASSERT_EQ(RunMoe({"train", own, "--out", dir_ / "same", "--threads", "1"}).exit_code, 0);
  EXPECT_TRUE(ReadFile(dir_ / "same/model.safetensors") == ReadFile(dir_ / "run/model.safetensors"));
}

TEST_F(TrainBadInput, Folders) {
  WriteFile(dir_ / "file", "x");
  ExpectFails(RunMoe({"train", dir_ / "r.toml", "--out", dir_ / "file"}), 1, dir_ / "file", "expected a folder");
  ExpectFails(RunMoe({"train", dir_ / "r.toml", "--out", dir_ / "file/run"}), 1, dir_ / "file/run", "expected a folder");
  ExpectFails(RunMoe({"train", dir_ / "r.toml", "--out", "/proc/run"}), 1, "/proc/run", "cannot");
  fs::create_symlink("loop", dir_ / "loop");
  fs::create_symlink("nothing", dir_ / "dangling");
  const std::string long_name(300, 'n');
  for (const auto& [name, part] :
       std::vector<std::pair<std::string, std::string>>{{long_name, "File name too long"},
                                                        {"new/" + long_name, "File name too long"},
                                                        {"loop", "Too many levels of symbolic links"},
                                                        {"loop/run", "Too many levels of symbolic links"},
                                                        {"dangling", "got a link to nothing at " + dir_ / "dangling"}}) {
    ExpectFails(RunMoe({"train", dir_ / "r.toml", "--out", dir_ / name}), 1, dir_ / name, part);
  }
  ExpectFails(Train({"--resume"}), 1, dir_ / "run", "got no checkpoint there (train_state), expected one to resume from");
  ExpectNothingWritten();
  ASSERT_EQ(Train().exit_code, 0);
  const std::string model = ReadFile(dir_ / "run/model.safetensors");
  ExpectFails(Train(), 1, dir_ / "run", "already holds a run (train_state), expected a new or empty folder; --resume goes on");
  EXPECT_TRUE(ReadFile(dir_ / "run/model.safetensors") == model);
}

TEST_F(TrainBadInput, FoldersThatHoldWhatARunWrites) {
  for (const std::string name : {"recipe.toml", "tokenizer.json", "tokenizer_config.json", "metrics.jsonl", "config.json",
                                 "model.safetensors", "train_state.previous", "best/mine"}) {
    const fs::path file = dir_.path() / ("has-" + name.substr(0, 4)) / name;
    fs::remove_all(dir_ / ("has-" + name.substr(0, 4)));
    fs::create_directories(file.parent_path());
    WriteFile(file, name == "recipe.toml" ? kTinyRecipe : "mine");
    const std::string folder = dir_ / ("has-" + name.substr(0, 4)), held = name == "best/mine" ? "best" : name;
    ExpectFails(RunMoe({"train", dir_ / "r.toml", "--out", folder}), 1, folder, held);
    EXPECT_EQ(ReadFile(file), name == "recipe.toml" ? kTinyRecipe : "mine");
    fs::remove(file);
    EXPECT_TRUE(fs::is_empty(file.parent_path())) << name;
  }
  // also what a run wrote, as it is or edited
  ASSERT_EQ(Train().exit_code, 0);
  for (const char* more : {"", "# mine\n"}) {
    for (const char* name : {"recipe.toml", "tokenizer.json"}) {
      const std::string folder = dir_ / fmt::format("copy{}-{}", std::string(more).size(), name);
      fs::create_directory(folder);
      fs::copy(dir_ / "run/recipe.toml", folder);
      if (name == std::string("tokenizer.json")) fs::copy(dir_ / "run/tokenizer.json", folder);
      const std::string text = ReadFile(folder + "/" + name) + more;
      WriteFile(folder + "/" + name, text);
      ExpectFails(RunMoe({"train", dir_ / "r.toml", "--out", folder}), 1, folder, "already holds recipe.toml");
      ExpectFails(RunMoe({"train", folder + "/recipe.toml", "--out", folder}), 1, folder, "already holds recipe.toml");
      EXPECT_EQ(ReadFile(folder + "/" + name), text);
    }
  }
}

// Killed before its first checkpoint, a run leaves nothing that is in the way of another.
TEST_F(TrainBadInput, FoldersOfARunThatNeverGotToACheckpoint) {
  fs::create_directory(dir_ / "run");
  WriteFile(dir_ / "run/metrics.jsonl", "");
  WriteFile(dir_ / "run/train_state.tmp", "half of");
  const RunResult again = Train({"--set", "train.steps=2"});
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_TRUE(fs::exists(dir_ / "run/model.safetensors"));
}

// Writes train_state anew, its tensors changed by `change`, checksums and all.
template <class Change>
void Rewrite(const std::string& path, Change&& change) {
  auto file = Safetensors::Open(path);
  ASSERT_TRUE(file) << file.error().Message();
  std::vector<std::pair<TensorInfo, std::vector<std::byte>>> tensors;
  for (const StoredTensor& tensor : file->tensors()) {
    tensors.push_back({tensor, std::vector<std::byte>(tensor.data.begin(), tensor.data.end())});
  }
  change(tensors);
  Metadata metadata;
  for (const auto& [key, value] : file->metadata()) {
    if (!key.starts_with("xxh3:")) metadata[key] = value;
  }
  std::vector<TensorInfo> infos;
  for (const auto& [info, bytes] : tensors) infos.push_back(info);
  auto writer = SafetensorsWriter::Create(path, infos, {.metadata = metadata, .checksums = true});
  ASSERT_TRUE(writer) << writer.error().Message();
  for (const auto& [info, bytes] : tensors) ASSERT_TRUE(writer->Append(info.name, bytes));
  ASSERT_TRUE(writer->Commit());
}

TEST_F(TrainBadInput, Checkpoints) {
  ASSERT_EQ(Train({"--set", "train.checkpoint_every=0", "train.eval_every=0"}).exit_code, 0);
  const std::string path = dir_ / "run/train_state", previous = path + ".previous";
  const std::string good = ReadFile(path), good_previous = ReadFile(previous);
  const auto damage = [](std::string bytes) {
    bytes[bytes.size() - 100] = static_cast<char>(bytes[bytes.size() - 100] ^ 1);
    return bytes;
  };
  const auto resume = [&] { return Train({"--resume", "--set", "train.checkpoint_every=0", "train.eval_every=0"}); };

  fs::remove(previous);
  WriteFile(path, good.substr(0, good.size() / 2));
  ExpectFails(resume(), 1, path, "");
  WriteFile(path, damage(good));
  ExpectFails(resume(), 1, path, "'v.");
  WriteFile(previous, damage(good_previous));
  ExpectFails(resume(), 1, path, "; and the one before, [" + previous + "]");
  fs::remove(previous);

  WriteFile(path, good);
  Rewrite(path, [](auto& tensors) { tensors.erase(tensors.begin() + 3); });
  ExpectFails(resume(), 1, path, "got no tensor 'master.");
  WriteFile(path, good);
  Rewrite(path, [](auto& tensors) {
    tensors.push_back(tensors.back());
    tensors.back().first.name = "v.layers.9.extra";
  });
  ExpectFails(resume(), 1, path, "got the unknown tensor 'v.layers.9.extra'");
  WriteFile(path, good);
  Rewrite(path, [](auto& tensors) { std::swap(tensors[0].first.shape[0], tensors[0].first.shape[1]); });
  ExpectFails(resume(), 1, path, "tensor 'master.");

  // an older program may have saved weights that are ruined
  WriteFile(path, good);
  Rewrite(path, [](auto& tensors) { std::fill_n(tensors[0].second.begin(), 4, std::byte{0xff}); });
  ExpectFails(resume(), 1, path, "got a checkpoint of step 12 in which ");

  WriteFile(path, good);
  ExpectFails(Train({"--resume", "--set", "model.experts=8"}), 1, Recipe("model.experts"), "got 8, expected 4: the run in ");
  ExpectFails(Train({"--resume", "--set", "train.steps=99"}), 1, Recipe("train.steps"), "got 99, expected 12");
  EXPECT_TRUE(ReadFile(path) == good);
  EXPECT_EQ(Train({"--resume"}).exit_code, 0);
}

}  // namespace
}  // namespace moe::test
