#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "moe/files/tokenizer.h"
#include "tests/cli/model_folder.h"

namespace moe::test {
namespace {

using nlohmann::json;

class Eval : public WithModel {
 protected:
  RunResult Run(std::vector<std::string> more, const RunOptions& options = {}) const {
    std::vector<std::string> arguments = {"eval", "--model", model()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunMoe(arguments, options);
  }
  json RunJson(std::vector<std::string> more) const {
    more.insert(more.end(), {"--json", "-"});
    const RunResult result = Run(more);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json::parse(result.out, nullptr, false);
  }
};

TEST_F(Eval, GivesTheDocumentedJson) {
  const std::string text = "The quick brown fox jumps over the lazy dog. It was not amused: \u20ac5 is \u20ac5.\n";
  const json result = RunJson({"--data", File("a.txt", text)});
  ASSERT_TRUE(result.is_object());
  EXPECT_EQ(result["bytes"], text.size());
  EXPECT_EQ(result["tokens"], text.size());  // a model of bytes
  const double loss = result["loss"], bits = result["bits_per_byte"], perplexity = result["perplexity"];
  EXPECT_GT(loss, 0);
  EXPECT_NEAR(bits, loss / std::log(2.0), 1e-12 * bits);
  EXPECT_NEAR(perplexity, std::exp(loss), 1e-12 * perplexity);
  ASSERT_EQ(result["layers"].size(), 2u);
  for (const json& layer : result["layers"]) {
    ASSERT_EQ(layer["tokens_per_expert"].size(), 4u);
    int64_t assignments = 0;
    for (const int64_t n : layer["tokens_per_expert"]) assignments += n;
    EXPECT_EQ(assignments, 2 * static_cast<int64_t>(text.size()));
    EXPECT_GE(layer["max_violation"].get<double>(), 0);
    EXPECT_EQ(layer["drop_rate"], 0);
    EXPECT_GT(layer["entropy"].get<double>(), 0);
    EXPECT_TRUE(layer["dead_experts"].is_number_integer());
    EXPECT_GE(layer["coefficient_of_variation"].get<double>(), 0);
    EXPECT_NEAR(layer["gate_mean"].get<double>(), 0.5, 1e-6);  // two that sum to 1
    EXPECT_GT(layer["largest_logit"].get<double>(), 0);
  }
}

TEST_F(Eval, BatchThreadsAndFilesDoNotChangeTheNumbers) {
  const std::string a = File("a.txt", std::string(200, 'a') + "bcd"), b = File("b.txt", "Some other text.");
  const json want = RunJson({"--data", a, "--data", b, "--batch", "1", "--threads", "1"});
  for (const json& got : {RunJson({"--data", a, b, "--batch", "3", "--threads", "2"}), RunJson({"--data", a, b})}) {
    for (const char* key : {"loss", "bits_per_byte", "perplexity", "bytes", "tokens", "layers", "files"}) {
      EXPECT_EQ(got[key], want[key]) << key;
    }
  }
  const json alone = RunJson({"--data", b});
  EXPECT_EQ(alone["loss"], want["files"][1]["loss"]);
  EXPECT_EQ(alone["bits_per_byte"], want["files"][1]["bits_per_byte"]);
  EXPECT_EQ(want["files"][1]["file"], b);
  EXPECT_EQ(want["bytes"], 203 + 16);
}

TEST_F(Eval, PrintsForPeople) {
  const std::string data = File("a.txt", "To be, or not to be.");
  const RunResult result = Run({"--data", data, "--json", dir_ / "result.json", "--dtype", "bf16", "--context", "8"});
  EXPECT_EQ(result.exit_code, 0);
  for (const char* part : {"nats/token", "bits/byte", "perplexity", "expert load", "dropped", "|logit|"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part;
  }
  const json written = json::parse(ReadFile(dir_ / "result.json"));
  EXPECT_EQ(written["dtype"], "bf16");
  EXPECT_EQ(written["context"], 8);
}

TEST_F(Eval, CtrlCEndsItInOneLine) {
  std::string text;
  for (int i = 0; i < 1000000; ++i) text += static_cast<char>('a' + i % 26);
  Subprocess process({MOE_BINARY, "eval", "--model", model(), "--data", File("long.txt", text + text + text)});
  ASSERT_TRUE(process.WaitForOutput("eval "));  // progress
  process.Signal(SIGINT);
  const RunResult result = process.Wait();
  EXPECT_FALSE(result.timed_out);
  EXPECT_EQ(result.exit_code, 130);
  EXPECT_EQ(result.out, "");
  const size_t line = result.err.find("stopped after ");
  ASSERT_NE(line, std::string::npos) << result.err;
  EXPECT_TRUE(result.err.ends_with(" of 3.00 M tokens; there is no result\n")) << result.err;
  EXPECT_EQ(result.err.find('\n', line), result.err.size() - 1) << result.err;
  EXPECT_EQ(result.err.find("moe: ["), std::string::npos) << "worded as an error: " << result.err;
}

TEST_F(Eval, DataThatIsNoText) {
  ExpectFails(Run({"--data", dir_ / "missing"}), 1, dir_ / "missing", "");
  ExpectFails(Run({"--data", dir_.path().string()}), 1, dir_.path().string(), "");
  ExpectFails(Run({"--data", File("empty", "")}), 1, dir_ / "empty", "");
  ExpectFails(Run({"--data", File("binary", std::string("ab\0cd", 5))}), 1, dir_ / "binary", "");
  ExpectFails(Run({"--data", File("latin1", "caf\xe9 noir")}), 1, dir_ / "latin1", "UTF-8");
}

TEST_F(Eval, WrongUsage) {
  const std::string data = File("a.txt", "text");
  ExpectFails(RunMoe({"eval"}), 2, "--model", "got nothing, expected FOLDER; see moe eval --help");
  ExpectFails(RunMoe({"eval", "--data", data}), 2, "--model", "got nothing, expected");
  ExpectFails(Run({}), 2, "--data", "got nothing, expected");
  ExpectFails(Run({"--data"}), 2, "--data", "got no value");
  ExpectFails(Run({"--data", data, "--bacth", "2"}), 2, "flags", "got '--bacth', expected '--batch'?");
  ExpectFails(Run({"--data", data, "--frobnicate=2"}), 2, "flags", "got '--frobnicate', expected one of ");
  ExpectFails(Run({"--data", data, "--batch", "two"}), 2, "--batch", "got 'two', expected an integer");
  ExpectFails(Run({"--data", data, "--batch", "0"}), 2, "--batch", "got 0, expected 1");
  ExpectFails(Run({"--data", data, "--batch", "1", "--batch", "2"}), 2, "--batch", "got 2 values, expected one");
  ExpectFails(Run({"--data", data, "--context", "33"}), 2, "--context", "got 33, expected 1..32, the model's");
  ExpectFails(Run({"--data", data, "--context", "0"}), 2, "--context", "got 0, expected 1..32");
  ExpectFails(Run({"--data", data, "--dtype", "f64"}), 2, "--dtype", "got 'f64', expected f32 or bf16");
  ExpectFails(Run({"--data", data, "--threads", "-3"}), 2, "--threads", "got -3, expected 1 to");
  ExpectFails(Run({"--data", data}, {.environment = {{"MOE_ISA", "mmx"}}}), 2, "MOE_ISA", "got 'mmx'");
}

TEST_F(Eval, AResultThatCannotBeWritten) {
  const std::string data = File("a.txt", "text");
  ExpectFails(Run({"--data", data, "--json", dir_ / "no/such/folder.json"}), 1, dir_ / "no/such/folder.json", "No such file");
  ExpectFails(Run({"--data", data, "--json", dir_.path().string()}), 1, dir_.path().string(), "got a folder");
}

class DamagedModel : public Eval {
 protected:
  void SetUp() override { copy_ = CopyOfModel(), data_ = File("a.txt", "text"); }
  // Both commands that read weights.
  void ExpectRefused(const std::string& where, const std::string& part, const char* file = __builtin_FILE(),
                     int line = __builtin_LINE()) const {
    ExpectFails(RunMoe({"eval", "--model", copy_, "--data", data_}), 1, where, part, file, line);
    ExpectFails(RunMoe({"generate", "--model", copy_, "--prompt", "a"}), 1, where, part, file, line);
  }
  static void ExpectOneLine(const RunResult& result) {
    EXPECT_EQ(result.exit_code, 1) << result.out;
    EXPECT_EQ(result.out, "");
    EXPECT_TRUE(result.err.starts_with("moe: [")) << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  }
  static uint64_t header_size(const std::string& bytes) {
    uint64_t size = 0;
    std::memcpy(&size, bytes.data(), sizeof(size));
    return size;
  }
  std::string weights() const { return copy_ + "/model.safetensors"; }
  std::string copy_, data_;
};

TEST_F(DamagedModel, Missing) {
  copy_ = dir_ / "nowhere";
  ExpectRefused(copy_, "got no such folder");
  copy_ = data_;
  ExpectRefused(copy_, "got a file, expected a folder");
}

TEST_F(DamagedModel, AnEmptyFolder) {
  copy_ = dir_ / "empty_folder";
  std::filesystem::create_directory(copy_);
  ExpectRefused(copy_ + "/config.json", "");
}

TEST_F(DamagedModel, WithoutOneOfItsFiles) {
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
    SCOPED_TRACE(name);
    std::filesystem::rename(copy_ + "/" + name, dir_ / "aside");
    const RunResult result = RunMoe({"eval", "--model", copy_, "--data", data_});
    ExpectOneLine(result);
    EXPECT_NE(result.err.find(name), std::string::npos) << result.err;
    std::filesystem::rename(dir_ / "aside", copy_ + "/" + name);
  }
}

TEST_F(DamagedModel, Truncated) {
  const std::string bytes = ReadFile(weights());
  for (const size_t size : {size_t{0}, size_t{7}, size_t{100}, bytes.size() / 2, bytes.size() - 1}) {
    SCOPED_TRACE(size);
    WriteFile(weights(), bytes.substr(0, size));
    ExpectRefused(weights(), "");
  }
}

TEST_F(DamagedModel, WithABitFlipped) {
  const std::string bytes = ReadFile(weights());
  Rng rng(1);
  for (int i = 0; i < 12; ++i) {
    // Some in the header, some in the tensors.
    const auto at = static_cast<size_t>(rng.Below(i % 3 == 0 ? 2000 : static_cast<int64_t>(bytes.size())));
    const int bit = static_cast<int>(rng.Below(8));
    SCOPED_TRACE(fmt::format("byte {} bit {}", at, bit));
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
    WriteFile(weights(), damaged);
    ExpectOneLine(RunMoe({"eval", "--model", copy_, "--data", data_}));
  }
}

TEST_F(DamagedModel, OfAnotherConfiguration) {
  json config = json::parse(ReadFile(copy_ + "/config.json"));
  config["num_hidden_layers"] = 3;
  WriteFile(copy_ + "/config.json", config.dump());
  const RunResult result = RunMoe({"eval", "--model", copy_, "--data", data_});
  ExpectOneLine(result);
  EXPECT_NE(result.err.find("model.layers.2."), std::string::npos) << result.err;
}

TEST_F(DamagedModel, WithoutATensorOrWithOneTooMany) {
  const std::string bytes = ReadFile(weights());
  uint64_t size = header_size(bytes);
  const json header = json::parse(bytes.substr(8, size));
  const std::string name = "model.norm.weight";
  ASSERT_TRUE(header.contains(name));
  for (const std::string& other : {std::string("model.other.weight"), std::string("model.layers.0.extra.weight")}) {
    SCOPED_TRACE(other);
    json changed = header;
    changed[other] = changed[name];
    changed.erase(name);
    changed.erase("__metadata__");  // checksums by name
    const std::string text = changed.dump();
    size = text.size();
    WriteFile(weights(), std::string(reinterpret_cast<const char*>(&size), 8) + text + bytes.substr(8 + header_size(bytes)));
    const RunResult result = RunMoe({"eval", "--model", copy_, "--data", data_});
    ExpectOneLine(result);
    EXPECT_TRUE(result.err.find(name) != std::string::npos || result.err.find(other) != std::string::npos) << result.err;
  }
}

TEST_F(DamagedModel, WithATokenizerOfAnotherModel) {
  json config = json::parse(ReadFile(copy_ + "/config.json"));
  config["vocab_size"] = 258;
  config["bos_token_id"] = config["eos_token_id"] = 0;
  WriteFile(copy_ + "/config.json", config.dump());
  ExpectRefused(copy_, "got a tokenizer of 259 tokens, expected at most the model's 258");
}

}  // namespace
}  // namespace moe::test
