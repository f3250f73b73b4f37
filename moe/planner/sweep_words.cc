#include "moe/planner/sweep_words.h"

#include <fmt/format.h>

#include <algorithm>

#include "moe/base/progress.h"

namespace moe {

ReadRange ReadsOf(const SweepReport& report) {
  if (report.rows.empty()) return {};
  ReadRange range{report.rows.front().read_min, report.rows.front().read_max};
  for (const SweepRow& row : report.rows) {
    range.min = std::min(range.min, row.read_min), range.max = std::max(range.max, row.read_max);
  }
  return range;
}

std::string MeasuredOn(const SweepReport& report) {
  return fmt::format("{}, {} {}, {}", report.cpu, report.threads, report.threads == 1 ? "thread" : "threads", report.isa);
}

std::string RoundsText(const SweepReport& report) {
  int64_t least = 0, most = 0;
  for (const SweepRow& row : report.rows) {
    least = least == 0 ? row.rounds : std::min<int64_t>(least, row.rounds), most = std::max<int64_t>(most, row.rounds);
  }
  return fmt::format("of {} interleaved rounds per batch, {} in all",
                     least == most ? fmt::format("{}", least) : fmt::format("{} to {}", least, most),
                     FormatSeconds(report.seconds));
}

std::string ForcedText(const SweepRouting& routing) {
  switch (routing.kind) {
    case SweepRouting::kModel:
      break;
    case SweepRouting::kUniform:
      return "forced to experts, all alike";
    case SweepRouting::kZipf:
      return fmt::format("forced to experts, Zipf({})", routing.s);
  }
  return "";
}

std::string AgainstTwin(std::string_view equal) {
  return fmt::format("Against the dense model of equal {}", equal);
}

}  // namespace moe
