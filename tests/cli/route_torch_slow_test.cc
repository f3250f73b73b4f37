// The named policies against PyTorch's own arithmetic, where it is installed (Debian's python3-torch).
#include <cmath>
#include <nlohmann/json.hpp>

#include "moe/files/safetensors.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/temp_dir.h"
#include "tests/cli/run_moe.h"

namespace moe::test {
namespace {

using nlohmann::json;

constexpr const char* kPython = "/usr/bin/python3";  // the one Debian's modules belong to
constexpr int64_t kTokens = 300, kExperts = 64;

void Write(const std::string& path, const std::vector<float>& logits, const std::vector<float>& bias) {
  std::vector<TensorInfo> tensors = {{.name = "logits", .shape = {kTokens, kExperts}}};
  if (!bias.empty()) tensors.push_back({.name = "bias", .shape = {kExperts}});
  auto writer = SafetensorsWriter::Create(path, tensors).value();
  ASSERT_TRUE(writer.AppendFloats("logits", logits));
  if (!bias.empty()) {
    ASSERT_TRUE(writer.AppendFloats("bias", bias));
  }
  ASSERT_TRUE(writer.Commit());
}

TEST(TorchOracle, NamedPoliciesChooseAndWeighAlike) {
  const RunResult found = RunProgram({kPython, "-c", "import torch; print(torch.__version__)"});
  if (found.exit_code != 0) GTEST_SKIP() << "no PyTorch for " << kPython << ": install python3-torch to run this";
  Rng rng(17);
  const auto bias = NormalFloats(kExperts, rng, 0.1);
  auto wide = NormalFloats(kTokens * kExperts, rng, 2), near = NormalFloats(kTokens * kExperts, rng, 0.05);
  for (float& z : near) z += 3;  // within a few hundredths of each other: sparsemixer has several to weigh
  int cases = 0, dropping = 0;
  for (const auto& [name, logits] : {std::pair{"wide", wide}, std::pair{"near", near}}) {
    const TempDir dir;
    const std::string plain = dir / "plain.safetensors", with_bias = dir / "bias.safetensors", out = dir / "out.json";
    Write(plain, logits, {});
    Write(with_bias, logits, bias);
    const RunResult oracle = RunProgram({kPython, MOE_SOURCE_DIR "/testing/policy_oracle.py", with_bias, out});
    ASSERT_EQ(oracle.exit_code, 0) << oracle.err;
    for (const json& want : json::parse(ReadFile(out))) {
      const auto policy = want["policy"].get<std::string>();
      SCOPED_TRACE(fmt::format("{}, {}", name, policy));
      std::vector<std::string> arguments = {"route",  "--logits", want["bias"] ? with_bias : plain, "--policy", policy,
                                            "--json", "-"};
      if (want["eval"]) arguments.push_back("--eval");
      const RunResult run = RunMoe(arguments);
      ASSERT_EQ(run.exit_code, 0) << run.err;
      const json got = json::parse(run.out);
      const auto k = want["top_k"].get<int32_t>();
      std::vector<int32_t> slot_begin;
      for (int32_t t = 0; t <= kTokens; ++t) slot_begin.push_back(t * k);
      EXPECT_EQ(got["slot_begin"], json(slot_begin));
      EXPECT_EQ(got["expert"], want["expert"]);
      EXPECT_EQ(got["kept"], want["kept"]);
      dropping += got["dropped"].get<int64_t>() > 0 ? 1 : 0;
      const auto gates = want["gate"].get<std::vector<double>>();
      std::vector<double> allowed;  // a sum over all experts, and a dozen operations after it
      for (const double g : gates) allowed.push_back(static_cast<double>(kExperts + 12) * kEpsF32 * g);
      ExpectClose(got["gate"].get<std::vector<double>>(), gates, allowed);
      ++cases;
    }
  }
  EXPECT_EQ(cases, 52);
  EXPECT_GE(dropping, 18);  // of 22 with a capacity
}

}  // namespace
}  // namespace moe::test
