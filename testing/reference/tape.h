#pragma once
// Reverse-mode differentiation for twins: write the formula once as a template over Real, run it with double for values and
// finite differences, with Var for every gradient at once. Slow and plain on purpose; it shares no code with the product.
//
//   Tape tape;                                  // Vars made while it lives are recorded on it
//   std::vector<Var> w = tape.Inputs(values);   // what to differentiate by
//   Var loss = F(w);
//   std::vector<double> d = tape.Gradient(loss, w);

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "moe/base/check.h"

namespace moe::test {

class Tape;
inline thread_local Tape* current_tape = nullptr;

// A double that remembers what it was made of. Made from a plain number it is a constant and costs nothing on the tape.
struct Var {
  double value = 0;
  int32_t node = -1;  // on the current tape; -1: a constant

  Var() = default;
  Var(double v) : value(v) {}  // NOLINT: implicit on purpose, so that formulas read alike for double and Var
  Var(double v, int32_t n) : value(v), node(n) {}
};

class Tape {
 public:
  // kFloat32: every value and every adjoint is rounded to float32, as a plain float program would have them. The difference to
  // the same formula in double says how much rounding a formula of this size and condition feels.
  enum class Precision { kDouble, kFloat32 };
  explicit Tape(Precision precision = Precision::kDouble) : precision_(precision), previous_(current_tape) {
    current_tape = this;
  }
  ~Tape() { current_tape = previous_; }
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  // A node with its parents added by AddEdge right after.
  int32_t AddNode() {
    MOE_CHECK(edge_begin_.size() < size_t{INT32_MAX}, "the tape is full");
    edge_begin_.push_back(static_cast<int64_t>(edges_.size()));
    return static_cast<int32_t>(edge_begin_.size()) - 1;
  }
  void AddEdge(const Var& parent, double partial) {
    if (parent.node >= 0) edges_.push_back({Round(partial), parent.node});
  }
  double Round(double x) const { return precision_ == Precision::kDouble ? x : static_cast<double>(static_cast<float>(x)); }

  Var Input(double value) { return {value, AddNode()}; }
  template <class Values>
  std::vector<Var> Inputs(const Values& values) {
    std::vector<Var> out;
    for (const auto v : values) out.push_back(Input(static_cast<double>(v)));
    return out;
  }

  // d output / d inputs[i]. Any number of times, for any outputs.
  std::vector<double> Gradient(const Var& output, std::span<const Var> inputs) const {
    std::vector<double> adjoint(edge_begin_.size(), 0.0);
    if (output.node >= 0) adjoint[static_cast<size_t>(output.node)] = 1.0;
    for (int64_t n = output.node; n >= 0; --n) {
      const double a = adjoint[static_cast<size_t>(n)];
      if (a == 0.0) continue;
      const size_t next = static_cast<size_t>(n) + 1;
      const int64_t end = next < edge_begin_.size() ? edge_begin_[next] : static_cast<int64_t>(edges_.size());
      for (int64_t e = edge_begin_[static_cast<size_t>(n)]; e < end; ++e) {
        const Edge& edge = edges_[static_cast<size_t>(e)];
        double& parent = adjoint[static_cast<size_t>(edge.parent)];
        parent = Round(parent + Round(a * edge.partial));
      }
    }
    std::vector<double> out;
    for (const Var& input : inputs) {
      MOE_CHECK(input.node >= 0, "a constant has no gradient");
      out.push_back(adjoint[static_cast<size_t>(input.node)]);
    }
    return out;
  }

  int64_t num_nodes() const { return static_cast<int64_t>(edge_begin_.size()); }

 private:
  struct Edge {
    double partial;
    int32_t parent;
  };
  std::vector<int64_t> edge_begin_;  // of each node
  std::vector<Edge> edges_;
  Precision precision_;
  Tape* previous_;
};

inline Var Record1(double value, const Var& a, double da) {
  if (a.node < 0) return {value};
  const int32_t node = current_tape->AddNode();
  current_tape->AddEdge(a, da);
  return {current_tape->Round(value), node};
}
inline Var Record2(double value, const Var& a, double da, const Var& b, double db) {
  if (a.node < 0 && b.node < 0) return {value};
  const int32_t node = current_tape->AddNode();
  current_tape->AddEdge(a, da);
  current_tape->AddEdge(b, db);
  return {current_tape->Round(value), node};
}

inline Var operator+(const Var& a, const Var& b) {
  return Record2(a.value + b.value, a, 1, b, 1);
}
inline Var operator-(const Var& a, const Var& b) {
  return Record2(a.value - b.value, a, 1, b, -1);
}
inline Var operator*(const Var& a, const Var& b) {
  return Record2(a.value * b.value, a, b.value, b, a.value);
}
inline Var operator/(const Var& a, const Var& b) {
  return Record2(a.value / b.value, a, 1 / b.value, b, -a.value / (b.value * b.value));
}
inline Var operator-(const Var& a) {
  return Record1(-a.value, a, -1);
}
inline Var& operator+=(Var& a, const Var& b) {
  return a = a + b;
}
inline Var& operator-=(Var& a, const Var& b) {
  return a = a - b;
}
inline Var& operator*=(Var& a, const Var& b) {
  return a = a * b;
}
inline Var& operator/=(Var& a, const Var& b) {
  return a = a / b;
}
inline bool operator<(const Var& a, const Var& b) {
  return a.value < b.value;
}
inline bool operator>(const Var& a, const Var& b) {
  return a.value > b.value;
}

// Found beside std:: ones: `using std::exp; exp(x)`.
inline Var exp(const Var& x) {
  const double e = std::exp(x.value);
  return Record1(e, x, e);
}
inline Var log(const Var& x) {
  return Record1(std::log(x.value), x, 1 / x.value);
}
inline Var sqrt(const Var& x) {
  const double root = std::sqrt(x.value);
  return Record1(root, x, 0.5 / root);
}
inline Var tanh(const Var& x) {
  const double t = std::tanh(x.value);
  return Record1(t, x, 1 - t * t);
}

inline double ValueOf(double x) {
  return x;
}
inline double ValueOf(const Var& x) {
  return x.value;
}

// sum over i < n of a[i*a_stride] * b[i*b_stride], as one node: a tape of matrix products stays small.
inline double DotOf(int64_t n, const double* a, int64_t a_stride, const double* b, int64_t b_stride) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i * a_stride] * b[i * b_stride];
  return sum;
}
inline Var DotOf(int64_t n, const Var* a, int64_t a_stride, const Var* b, int64_t b_stride) {
  const int32_t node = current_tape->AddNode();
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Var &x = a[i * a_stride], &y = b[i * b_stride];
    sum = current_tape->Round(sum + current_tape->Round(x.value * y.value));
    current_tape->AddEdge(x, y.value);
    current_tape->AddEdge(y, x.value);
  }
  return {sum, node};
}

}  // namespace moe::test
