#include "moe/mixture/trace.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "moe/cli/commands.h"
#include "moe/cli/common.h"

namespace moe {
namespace {

std::string ShapeOf(const TraceStep& step) {
  return fmt::format("[{}]{}", fmt::join(step.shape, ","), step.per_expert ? " per expert" : "");
}

std::string TableOf(const Trace& trace) {
  const std::vector<std::string> titles = {"step", "operation", "tensor shape"};
  std::vector<size_t> widths;
  for (const std::string& title : titles) widths.push_back(title.size());
  for (const TraceStep& step : trace.steps) {
    widths[0] = std::max(widths[0], step.name.size() + 3);
    widths[1] = std::max(widths[1], step.operation.size());
    widths[2] = std::max(widths[2], ShapeOf(step).size());
  }
  const auto row = [&](std::string_view a, std::string_view b, std::string_view c, std::string_view d) {
    return fmt::format("{:<{}}  {:<{}}  {:<{}}  {}\n", a, widths[0], b, widths[1], c, widths[2], d);
  };
  std::string out = row(titles[0], titles[1], titles[2], "what happened");
  const auto line = [](size_t width) { return std::string(width, '-'); };
  out += row(line(widths[0]), line(widths[1]), line(widths[2]), line(40));
  for (size_t i = 0; i < trace.steps.size(); ++i) {
    const TraceStep& step = trace.steps[i];
    out += row(fmt::format("{}  {}", i + 1, step.name), step.operation, ShapeOf(step), step.happened.front());
    for (size_t h = 1; h < step.happened.size(); ++h) out += row("", "", "", step.happened[h]);
  }
  return out;
}

std::string TextOf(const Trace& trace) {
  const TraceOptions& o = trace.options;
  std::string out = fmt::format("One batch of {} x {} tokens through one MoE layer: {} experts, top-{}, seed {}.\n\n", o.batch,
                                o.sequence, o.experts, o.top_k, o.seed);
  out += TableOf(trace);
  out += fmt::format("\ntokens per expert  {} before dropping (max violation {:.3g}, balance loss {:.4g})\n",
                     fmt::join(trace.tokens_per_expert, " "), trace.max_violation, trace.balance_loss);
  out += fmt::format("padded             {} empty bucket rows of {}\n", trace.padded, o.experts * trace.capacity);
  out += fmt::format("dropped            {} slots of {}\n", trace.dropped, o.batch * o.sequence * o.top_k);
  out += fmt::format("capacity           {}\n", trace.capacity_lines[0]);
  for (size_t i = 1; i < trace.capacity_lines.size(); ++i)
    out += fmt::format("                   {}\n", trace.capacity_lines[i]);
  return out;
}

nlohmann::json JsonOf(const Trace& trace) {
  nlohmann::json steps = nlohmann::json::array();
  for (const TraceStep& step : trace.steps) {
    steps.push_back({{"name", step.name},
                     {"operation", step.operation},
                     {"shape", step.shape},
                     {"per_expert", step.per_expert},
                     {"happened", step.happened}});
  }
  return {{"steps", std::move(steps)},
          {"tokens_per_expert", trace.tokens_per_expert},
          {"rows_per_expert", trace.rows_per_expert},
          {"padded", trace.padded},
          {"dropped", trace.dropped},
          {"capacity", trace.capacity},
          {"capacity_factor", trace.capacity_factor},
          {"capacity_formula", trace.capacity_lines},
          {"top_k_experts", trace.top_k_experts},
          {"gates", trace.gates},
          {"max_violation", trace.max_violation},
          {"entropy", trace.entropy},
          {"balance_loss", trace.balance_loss}};
}

}  // namespace

int RunTrace(int argc, char** argv) {
  TraceOptions options;
  CommonFlags common;
  CLI::App app("Walks one batch through one MoE layer with random weights, step by step.", "moe trace");
  app.add_option("--batch", options.batch, "Sequences (default 2)")->type_name("N");
  app.add_option("--seq", options.sequence, "Tokens of each (default 5)")->type_name("N");
  app.add_option("--hidden", options.hidden, "Width of a token (default 128)")->type_name("N");
  app.add_option("--experts", options.experts, "Experts (default 4)")->type_name("N");
  app.add_option("--top-k", options.top_k, "Experts per token (default 2)")->type_name("N");
  CLI::Option* capacity =
      app.add_option("--capacity", options.capacity, "Rows per expert, 0: dropless (default 6)")->type_name("N");
  CLI::Option* factor =
      app.add_option("--capacity-factor", options.capacity_factor, "Capacity from ceil(X * tokens * top_k / experts)")
          ->type_name("X");
  app.add_option("--width", options.width, "Width of an expert, a multiple of 16 (default 256)")->type_name("N");
  app.add_option("--seed", options.seed, "Of input and weights (default 5)")->type_name("N");
  AddCommonFlags(app, common);
  SetExamples(app, {{"moe trace", "the textbook picture: 10 tokens, 4 experts, buckets of 6 rows"},
                    {"moe trace --capacity 0", "the same without dropping"},
                    {"moe trace --batch 8 --seq 64 --experts 16 --capacity-factor 1.25", "what a training step would drop"}});
  if (const auto code = ParseFlags(app, argc, argv)) return *code;
  if (factor->count() > 0 && capacity->count() > 0) {
    return Fail({"--capacity-factor", "got --capacity too, expected one of the two", 2});
  }
  if (factor->count() > 0 && !(options.capacity_factor > 0)) {
    return Fail({"--capacity-factor", fmt::format("got {}, expected a positive number", options.capacity_factor), 2});
  }
  if (const Status target = CheckJsonTarget(common); !target) return Fail(target.error());
  auto context = MakeRunContext(common);
  if (!context) return Fail(context.error());
  const auto trace = TraceLayer(options, (*context)->exec);
  if (!trace) {
    Error error = trace.error();
    std::string flag = "--" + (error.where == "sequence" ? std::string("seq") : error.where);
    std::replace(flag.begin(), flag.end(), '_', '-');
    if (app.get_option_no_throw(flag) != nullptr) error.where = flag, error.exit_code = 2;
    return Fail(error);
  }
  if (!common.json_on_stdout()) {
    if (const auto written = WriteStdout(TextOf(*trace)); !written) return Fail(written.error());
  }
  const Status status = WriteJsonResult(common, JsonOf(*trace));
  return status ? 0 : Fail(status.error());
}

}  // namespace moe
