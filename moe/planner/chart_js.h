#pragma once
// Chart.js as Debian's libjs-chart.js has it: the build makes the .cc from the file (cmake/MoeTargets.cmake).

#include <string_view>

namespace moe {

std::string_view ChartJs();

}  // namespace moe
