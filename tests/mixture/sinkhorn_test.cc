// Sinkhorn's balance against its definition in double: when it stops, what it balances, whom it chooses.
#include <algorithm>
#include <cmath>

#include "moe/mixture/selection.h"
#include "tests/mixture/router_fixture.h"

namespace moe::test {
namespace {

struct Matrix {
  std::string name;
  int64_t T = 0, E = 0;
  std::vector<float> logits = {};
  std::vector<uint8_t> valid = {};

  MatView<const float> view() const { return {logits.data(), T, E}; }
  bool IsToken(int64_t t) const { return valid.empty() || valid[static_cast<size_t>(t)] != 0; }
  double z(int64_t t, int64_t e) const { return logits[static_cast<size_t>(t * E + e)]; }
  // The furthest that a logit lies below its row's largest.
  double Spread() const {
    double spread = 0;
    for (int64_t t = 0; t < T; ++t) {
      if (!IsToken(t)) continue;
      const auto [least, most] = std::minmax_element(view().row(t), view().row(t) + E);
      spread = std::max<double>(spread, *most - *least);
    }
    return spread;
  }
  // That a round of float32 may be off, relatively: exponentials of rounded differences (of two products), a product of E
  // terms, and the roundings of both factors. Scaling rows and columns enlarges no relative error, so rounds add up.
  double RoundError() const { return kEpsF32 * (static_cast<double>(E) + 8 + 2 * (Spread() + 2)); }
};

Matrix Noisy(int64_t T, int64_t E, float ahead, bool padding = false) {
  Rng rng(static_cast<uint64_t>(T + E));
  Matrix m{.name = fmt::format("{} tokens, {} experts, the first {} ahead, padding {}", T, E, ahead, padding),
           .T = T,
           .E = E,
           .logits = NormalFloats(T * E, rng)};
  for (int64_t t = 0; t < T; ++t) {
    m.logits[static_cast<size_t>(t * E)] += ahead;
    if (padding) m.valid.push_back(t % 4 != 1);
    if (!m.IsToken(t)) std::fill_n(m.logits.begin() + t * E, E, NAN);
  }
  return m;
}
// Nothing tells one token from another.
Matrix Alike(int64_t T, int64_t E, float ahead) {
  Matrix m{.name = fmt::format("{} equal tokens, {} experts, the first {} ahead", T, E, ahead), .T = T, .E = E};
  m.logits.assign(static_cast<size_t>(T * E), 500.0f);
  for (int64_t t = 0; t < T; ++t) m.logits[static_cast<size_t>(t * E)] += ahead;
  return m;
}
// Factors of up to e^69 are within reach of float32 (1e30): logits that lie 60 apart are.
std::vector<Matrix> Matrices() {
  std::vector<Matrix> all;
  for (const float ahead : {0.0f, 8.0f, 60.0f}) {
    for (const int64_t T : {0, 1, 5, 300}) all.push_back(Noisy(T, 8, ahead));
    all.push_back(Noisy(300, 8, ahead, /*padding=*/true));
    all.push_back(Noisy(7, 33, ahead));
    all.push_back(Noisy(40, 1, ahead));
    all.push_back(Noisy(20, 1024, ahead));
    all.push_back(Alike(40, 8, ahead));
  }
  return all;
}

RouterConfig Config(int64_t E, const std::string& more = "top_k=1,normalize=false") {
  return ParsePolicy("selection=sinkhorn," + more, E, "test").value();
}

// exp(z), rows scaled to sum to 1 / tokens, then columns to 1 / E, again and again.
struct Naive {
  std::vector<double> log_column;  // [E]
  std::vector<double> off;  // of each round, before its columns are scaled: their mean distance from their share, in shares
};
Naive NaiveSinkhorn(const Matrix& m, int64_t rounds) {
  const auto E = static_cast<size_t>(m.E);
  int64_t tokens = 0;
  for (int64_t t = 0; t < m.T; ++t) tokens += m.IsToken(t) ? 1 : 0;
  std::vector<double> column(E, 1.0);
  Naive out;
  for (int64_t round = 0; round < rounds; ++round) {
    std::vector<double> sum(E, 0.0);
    for (int64_t t = 0; t < m.T; ++t) {
      if (!m.IsToken(t)) continue;
      double row = 0;
      for (size_t e = 0; e < E; ++e) row += std::exp(m.z(t, static_cast<int64_t>(e))) * column[e];
      for (size_t e = 0; e < E; ++e) {
        sum[e] += std::exp(m.z(t, static_cast<int64_t>(e))) * column[e] / row / static_cast<double>(tokens);
      }
    }
    double off = 0;
    for (size_t e = 0; e < E; ++e) {
      off += std::abs(sum[e] * static_cast<double>(E) - 1) / static_cast<double>(E);
      column[e] /= sum[e] * static_cast<double>(E);
    }
    out.off.push_back(off);
  }
  for (const double c : column) out.log_column.push_back(std::log(c));
  return out;
}
double LargestAbs(const std::vector<float>& x) {
  double most = 0;
  for (const float v : x) most = std::max<double>(most, std::abs(v));
  return most;
}

TEST(Sinkhorn, GoesThroughTheRoundsOfItsDefinitionAndStopsWhereThatIsBalanced) {
  for (const Matrix& m : Matrices()) {
    SCOPED_TRACE(m.name);
    const RouterConfig config = Config(m.E);
    Router one(config), three(config, 3);
    std::vector<float> got(static_cast<size_t>(m.E)), again = got;
    const int64_t rounds = Sinkhorn(config, m.view(), m.valid, got, one.ctx);
    EXPECT_EQ(Sinkhorn(config, m.view(), m.valid, again, three.ctx), rounds);
    ExpectSameBits(again, got);
    EXPECT_EQ(rounds == 0, m.T == 0);
    EXPECT_LT(rounds, config.sinkhorn_rounds);
    const Naive want = NaiveSinkhorn(m, rounds);
    const double error = static_cast<double>(rounds) * m.RoundError() + kEpsF32 * LargestAbs(got);
    if (m.T > 0) ExpectClose(got, want.log_column, Tolerance{.absolute = error});
    // The first round whose columns were within the tolerance is the last; they are measured as sums, once more as many errors.
    for (size_t i = 0; i < want.off.size(); ++i) {
      if (i + 1 < want.off.size()) {
        EXPECT_GT(want.off[i], config.sinkhorn_tolerance - 2 * error) << i;
      } else {
        EXPECT_LT(want.off[i], config.sinkhorn_tolerance + 2 * error);
      }
    }
  }
}

// Of the matrix that the product's own factors make: rows are scaled to sum alike, columns then do within the tolerance.
TEST(Sinkhorn, BalancesWithinItsTolerance) {
  for (const double tolerance : {1e-2, 1e-4}) {
    for (const Matrix& m : Matrices()) {
      if (m.T == 0) continue;
      SCOPED_TRACE(fmt::format("{} within {}", m.name, tolerance));
      RouterConfig config = Config(m.E);
      config.sinkhorn_rounds = 10000, config.sinkhorn_tolerance = tolerance;
      std::vector<float> factor(static_cast<size_t>(m.E));
      Router r(config);
      ASSERT_LT(Sinkhorn(config, m.view(), m.valid, factor, r.ctx), config.sinkhorn_rounds);
      std::vector<double> column(factor.size());
      double tokens = 0;
      for (int64_t t = 0; t < m.T; ++t) {
        if (!m.IsToken(t)) continue;
        double sum = 0;
        ++tokens;
        for (int64_t e = 0; e < m.E; ++e) sum += std::exp(m.z(t, e) + static_cast<double>(factor[static_cast<size_t>(e)]));
        for (int64_t e = 0; e < m.E; ++e) {
          const auto i = static_cast<size_t>(e);
          column[i] += std::exp(m.z(t, e) + static_cast<double>(factor[i])) / sum;
        }
      }
      double off = 0;
      for (const double c : column) off += std::abs(c / tokens * static_cast<double>(m.E) - 1) / static_cast<double>(m.E);
      // The last round measured with its errors and scaled with them; logarithms of factors are rounded once more, for rows and
      // columns.
      EXPECT_LT(off, tolerance + 3 * m.RoundError() + 2 * kEpsF32 * LargestAbs(factor));
    }
  }
}

TEST(Sinkhorn, ChoosesTheBestOfTheBalancedMatrixForEveryScoreAndK) {
  for (const Matrix& m : Matrices()) {
    const RouterConfig any = Config(m.E);
    Router balancer(any);
    std::vector<float> factor(static_cast<size_t>(m.E));
    const int64_t rounds = Sinkhorn(any, m.view(), m.valid, factor, balancer.ctx);
    const Naive want = NaiveSinkhorn(m, rounds);
    for (const char* score : {"softmax", "sigmoid"}) {
      for (const int64_t k : {int64_t{1}, std::min<int64_t>(2, m.E), m.E}) {
        SCOPED_TRACE(fmt::format("{}: {} top {}", m.name, score, k));
        const RouterConfig config = Config(m.E, fmt::format("score={},normalize=false,top_k={}", score, k));
        Router r(config, 2);
        const auto routing = Route(config, {.logits = m.view(), .valid = m.valid, .training = true}, nullptr, r.ctx);
        ASSERT_TRUE(routing) << routing.error().Message();
        const auto choices = ChoicesOf(routing->slot_begin, routing->expert);
        for (int64_t t = 0; t < m.T; ++t) {
          const auto& chosen = choices[static_cast<size_t>(t)];
          ASSERT_EQ(std::ssize(chosen), m.IsToken(t) ? k : 0);
          if (!m.IsToken(t)) continue;
          std::vector<double> v;
          double largest = 0;
          for (int64_t e = 0; e < m.E; ++e) {
            v.push_back(m.z(t, e) + want.log_column[static_cast<size_t>(e)]);
            largest = std::max(largest, std::abs(v.back()));
          }
          // Two values' errors: all rounds', the logarithm's and the sum's.
          ExpectBestFirst(v, chosen,
                          2 * (static_cast<double>(rounds) * m.RoundError() + kEpsF32 * (LargestAbs(factor) + largest)));
        }
      }
    }
  }
}

// Where nothing tells experts apart it is the lowest; where one is ahead of a noisy crowd, training sends it about its share
// and evaluation all.
TEST(Sinkhorn, SpreadsATrainingsTokensAndLeavesEvaluationAlone) {
  for (const char* score : {"softmax", "sigmoid"}) {
    SCOPED_TRACE(score);
    const RouterConfig config = Config(8, fmt::format("score={},normalize=false,top_k=1", score));
    Router r(config);
    const auto route = [&](const Matrix& m, bool training) {
      return Route(r.config, {.logits = m.view(), .training = training}, nullptr, r.ctx).value();
    };
    const Matrix equal = Alike(40, 8, 0);
    for (const int32_t e : route(equal, true).expert) EXPECT_EQ(e, 0);
    for (const float ahead : {4.0f, 30.0f, 60.0f}) {
      const Matrix m = Noisy(300, 8, ahead);
      EXPECT_LT(*std::ranges::max_element(route(m, true).aux.tokens_per_expert), 2 * 300 / 8) << ahead;
      const Routing evaluated = route(m, false);
      EXPECT_GT(evaluated.aux.tokens_per_expert[0], 250) << ahead;
      Router plain(config);
      plain.config.selection = RouterSelection::kTopK;
      const Routing top = plain.Run(m.logits).value();
      ExpectSameBits(evaluated.expert, top.expert);
      ExpectSameBits(evaluated.gate, top.gate);
    }
  }
}

TEST(Sinkhorn, StopsAtItsBound) {
  const Matrix m = Noisy(300, 8, 3);
  RouterConfig config = Config(8);
  config.sinkhorn_tolerance = 1e-30;  // never
  Router r(config);
  std::vector<float> got(8);
  for (const int64_t bound : {1, 2, 7}) {
    config.sinkhorn_rounds = bound;
    EXPECT_EQ(Sinkhorn(config, m.view(), {}, got, r.ctx), bound);
    const Naive want = NaiveSinkhorn(m, bound);
    ExpectClose(got, want.log_column,
                Tolerance{.absolute = static_cast<double>(bound) * m.RoundError() + kEpsF32 * LargestAbs(got)});
  }
  // Further apart than factors reach: no balance, but numbers, an end, and the favourite for all.
  const Matrix far = Noisy(40, 8, 200);
  EXPECT_LE(Sinkhorn(Config(8), far.view(), {}, got, r.ctx), Config(8).sinkhorn_rounds);
  for (const float x : got) EXPECT_TRUE(std::isfinite(x));
  const Routing routing = Route(Config(8), {.logits = far.view(), .training = true}, nullptr, r.ctx).value();
  EXPECT_EQ(routing.aux.tokens_per_expert[0], 40);
  // Padding alone: no rounds.
  EXPECT_EQ(Sinkhorn(Config(8), far.view(), std::vector<uint8_t>(40, 0), got, r.ctx), 0);
}

TEST(Sinkhorn, NamesATokenWhoseLogitIsNotFinite) {
  for (const char* score : {"softmax", "sigmoid"}) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      Matrix m = Noisy(300, 8, 3);
      m.logits[7 * 8 + 2] = m.logits[200 * 8] = bad;
      Router r(Config(8, fmt::format("score={},normalize=false,top_k=1", score)));
      const auto routing = Route(r.config, {.logits = m.view(), .training = true}, nullptr, r.ctx);
      ASSERT_FALSE(routing);
      EXPECT_EQ(routing.error().what, fmt::format("token 7: got logit {} for expert 2, expected finite numbers", bad));
    }
  }
}

}  // namespace
}  // namespace moe::test
