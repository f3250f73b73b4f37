#include "moe/planner/bench_subjects.h"

namespace moe {
namespace {

constexpr BenchSubject kSubjects[] = {
    {"gemm", "matrix products: dense, decode, backward", "gemm", DenseCases},
};

}  // namespace

std::span<const BenchSubject> BenchSubjects() {
  return kSubjects;
}

}  // namespace moe
