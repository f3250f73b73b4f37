// Every tensor of a saved model against the autograd of PyTorch, where it is installed (Debian's python3-torch).

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "moe/files/safetensors.h"
#include "moe/model/hf_tensors.h"
#include "moe/model/save.h"
#include "testing/hf_cases.h"
#include "testing/matchers.h"
#include "testing/reference/twin_gradients.h"
#include "testing/subprocess.h"
#include "testing/temp_dir.h"
#include "testing/test_context.h"

namespace moe::test {
namespace {

constexpr double kGradScale = 0.125, kAuxScale = 0.5;
constexpr const char* kPython = "/usr/bin/python3";  // the one Debian's modules belong to

TEST(TorchOracle, GradientsEqualAutogradsForEveryFamily) {
  const RunResult found = RunProgram({kPython, "-c", "import torch; print(torch.__version__)"});
  if (found.exit_code != 0) GTEST_SKIP() << "no PyTorch for " << kPython << ": install python3-torch to run this";
  int64_t tensors = 0;
  double worst = 0;
  for (HfCase& c : HfCases()) {
    SCOPED_TRACE(c.name);
    for (LayerSpec& layer : c.config.layers) {  // the oracle knows no dropping; make the losses count
      layer.moe.router.capacity.factor = 0, layer.moe.router.balance_loss = 0.5, layer.moe.router.z_loss = 0.25;
    }
    const TempDir dir;
    TestContext t(2);
    Model model(c.config, DType::kF32, true);
    FillParameters(model, 21, t.ctx);
    ASSERT_TRUE(SaveModel(model, dir.path().string(), DType::kF32));
    const TinyBatch batch = RandomBatch(c.config, {7, 4}, 5);
    nlohmann::json request = {{"sequences", nlohmann::json::array()}, {"targets", nlohmann::json::array()}};
    for (size_t r = 0; r < batch.rows.size(); ++r) {
      if (batch.rows[r].position == 0) {
        request["sequences"].push_back(nlohmann::json::array()), request["targets"].push_back(nlohmann::json::array());
      }
      request["sequences"].back().push_back(batch.rows[r].token_id), request["targets"].back().push_back(batch.targets[r]);
    }
    request["grad_scale"] = kGradScale, request["aux_scale"] = kAuxScale;
    WriteFile(dir / "batch.json", request.dump());
    const RunResult run = RunProgram({kPython, MOE_SOURCE_DIR "/testing/torch_oracle.py", dir.path().string(),
                                      dir / "batch.json", dir / "gradients.safetensors"});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    const Safetensors want = Safetensors::Open(dir / "gradients.safetensors").value();
    const auto read = [&](const std::string& name) {
      const StoredTensor* tensor = want.Find(name);
      std::vector<float> values(tensor == nullptr ? 0 : static_cast<size_t>(tensor->size()));
      EXPECT_TRUE(tensor != nullptr && ReadFloats(*tensor, tensor->shape, values)) << name;
      return values;
    };

    StepStats stats;
    ASSERT_TRUE(model.ForwardBackward(batch.step(), batch.targets, kGradScale, kAuxScale, &stats, t.ctx));
    const TwinGradients exact = Differentiate(model, batch, kGradScale, kAuxScale, Tape::Precision::kDouble);
    const double error =
        Float32Error(model, exact, Differentiate(model, batch, kGradScale, kAuxScale, Tape::Precision::kFloat32));
    // The oracle computes in double and rounds what it writes once.
    EXPECT_NEAR(stats.loss_sum, static_cast<double>(read("loss_sum")[0]), (kTimesFloat32 * error + kEpsF32) * stats.loss_sum);
    double aux = 0;
    for (size_t l = 0; l < c.config.layers.size(); ++l) {
      const RouterConfig& router = c.config.layers[l].moe.router;
      if (c.config.layers[l].ffn == FfnKind::kDense) continue;
      aux += router.balance_loss * stats.layers[l].balance_loss + router.z_loss * stats.layers[l].z_loss;
    }
    EXPECT_NEAR(aux, static_cast<double>(read("aux_sum")[0]), (kTimesFloat32 * error + kEpsF32) * aux);
    const auto compare = [&](const HfMatrix& matrix) -> Status {
      const Parameter& p = *model.parameters().Find(matrix.parameter);
      const float* grad = p.grad.data() + matrix.index * matrix.rows * matrix.cols;
      const double* all = exact.values.at(p.name).data() + matrix.index * matrix.rows * matrix.cols;
      const double scale = MaxAbs(all, matrix.rows * matrix.cols);
      for (const HfPiece& piece : matrix.pieces) {
        SCOPED_TRACE(piece.name);
        ++tensors;
        std::vector<double> got;
        for (int64_t r = 0; r < piece.rows; ++r) {
          const float* row = grad + piece.MatrixRow(r) * matrix.cols;
          got.insert(got.end(), row, row + matrix.cols);
        }
        const std::vector<double> oracle = Doubles(read(piece.name));
        if (oracle.size() != got.size()) return Err(piece.name, "got {} values, expected {}", oracle.size(), got.size());
        for (size_t i = 0; i < got.size() && scale > 0; ++i) worst = std::max(worst, std::abs(got[i] - oracle[i]) / scale);
        EXPECT_TRUE(Within(got, oracle, Tolerance{.absolute = (kTimesFloat32 * error + kEpsF32) * scale}));
      }
      return {};
    };
    const Status status = ForEachHfMatrix(c.config, compare);
    EXPECT_TRUE(status) << status.error().Message();
  }
  RecordProperty("torch", found.out);
  RecordProperty("tensors", static_cast<int>(tensors));
  RecordProperty("worst_relative_error", fmt::format("{:.3g}", worst));
  EXPECT_GT(tensors, 300);
}

}  // namespace
}  // namespace moe::test
