#include "testing/reference/tape.h"

#include <gtest/gtest.h>

#include "moe/base/rng.h"
#include "testing/matchers.h"

namespace moe::test {
namespace {

// Every operation, each input used more than once.
template <class Real>
Real Formula(const std::vector<Real>& x) {
  using std::exp, std::log, std::sqrt, std::tanh;
  Real sum = x[0] * x[1] - x[2] / x[3];
  sum += exp(x[0] * Real(0.5)) + log(x[3]) * x[2];
  sum -= sqrt(x[3] + x[1] * x[1]);
  sum *= tanh(x[2]) + Real(2);
  sum /= Real(1) + x[0] * x[0];
  return sum + DotOf(2, x.data(), 1, x.data() + 3, -2) + -x[1];  // x0 x3 + x1 x1
}

TEST(Tape, GradientsAgreeWithCentralDifferences) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    std::vector<double> x;
    for (int i = 0; i < 4; ++i) x.push_back(rng.Normal());
    x[3] = 1 + std::abs(x[3]);
    Tape tape;
    const std::vector<Var> inputs = tape.Inputs(x);
    const Var output = Formula(inputs);
    EXPECT_DOUBLE_EQ(output.value, Formula(x));
    const std::vector<double> gradient = tape.Gradient(output, inputs);
    for (size_t i = 0; i < x.size(); ++i) {
      constexpr double h = 1e-5;  // truncation h^2 = 1e-10, rounding 1e-16 / h = 1e-11, each times a few
      auto up = x, down = x;
      up[i] += h, down[i] -= h;
      EXPECT_NEAR(gradient[i], (Formula(up) - Formula(down)) / (2 * h), 1e-7 * (1 + std::abs(gradient[i])));
    }
  }
}

TEST(Tape, ConstantsCostNothing) {
  Tape tape;
  const Var x = tape.Input(3);
  const Var y = Var(2) * Var(5) + exp(Var(0));
  EXPECT_EQ(tape.num_nodes(), 1);
  EXPECT_EQ(y.value, 11);
  EXPECT_EQ(tape.Gradient(y, std::vector<Var>{x}), std::vector<double>{0});
}

TEST(Tape, GradientCanBeTakenOfSeveralOutputs) {
  Tape tape;
  const std::vector<Var> x = tape.Inputs(std::vector<double>{2, 7});
  const Var product = x[0] * x[1], sum = product + x[0];
  EXPECT_EQ(tape.Gradient(product, x), (std::vector<double>{7, 2}));
  EXPECT_EQ(tape.Gradient(sum, x), (std::vector<double>{8, 2}));
}

TEST(Tape, AnInnerTapeLeavesTheOuterOneAlone) {
  Tape outer;
  const std::vector<Var> x = outer.Inputs(std::vector<double>{4});
  {
    Tape inner;
    const std::vector<Var> y = inner.Inputs(std::vector<double>{5});
    EXPECT_EQ(inner.Gradient(y[0] * y[0], y), std::vector<double>{10});
  }
  EXPECT_EQ(outer.Gradient(x[0] * x[0], x), std::vector<double>{8});
}

}  // namespace
}  // namespace moe::test
