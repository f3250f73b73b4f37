#pragma once

#include <string_view>

namespace moe {

// main of a binary that measures one subject of moe/planner/bench_subjects.h beside the peers that were found at build time.
int BenchMain(int argc, char** argv, std::string_view subject);

}  // namespace moe
