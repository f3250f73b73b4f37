#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "moe/planner/bench.h"
#include "moe/planner/bench_gemm.h"
#include "moe/planner/bench_shapes.h"

namespace moe {

// What `moe bench` can be asked for.
struct BenchSubject {
  std::string_view name, summary;
  std::string_view shapes;  // the lines of a shapes file that it reads
  // In order of groups. peers may be empty.
  std::vector<BenchCase> (*cases)(const BenchShapes& shapes, DType format, const GemmPeers& peers);
};
std::span<const BenchSubject> BenchSubjects();

}  // namespace moe
