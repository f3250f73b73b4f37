#include "moe/cli/plan_routing.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "moe/base/clock.h"
#include "moe/base/interrupt.h"
#include "moe/base/progress.h"
#include "moe/cli/load_model.h"
#include "moe/cli/text_tokens.h"
#include "moe/infer/generate.h"

namespace moe {

Result<std::shared_ptr<const MeasuredRouting>> MeasureRoutingOf(const std::string& path, const PlanRoutingFlags& flags,
                                                                int64_t context, ExecContext& ctx) {
  MOE_TRY(const ModelFolder folder, OpenModelFolder(path, /*dtype=*/""));
  if (!folder.config.has_experts()) {
    return Err(path, "is dense: it has no experts to choose, expected a model with some; without --data it is planned alone");
  }
  MOE_TRY(const auto texts, ReadTexts(flags.data, folder.tokenizer, flags.tokens));
  const std::vector<Document> documents = DocumentsOf(folder.tokenizer, texts);
  // Longer windows take longer, and nothing is asked of them.
  const int64_t window = std::min(folder.config.context, std::max(context, kEvaluateRows));
  const int64_t rows = std::min(flags.tokens, std::max(window, kEvaluateRows));
  MOE_TRY(const auto model, LoadForInference(folder, {.rows = rows}, ctx));

  InstallInterruptHandler();
  const double start = NowSeconds();
  ProgressLine progress;
  int64_t tokens_done = 0;
  bool stopped = false;
  EvaluateOptions options{.context = window, .bos_id = BosId(folder.config, folder.tokenizer)};
  options.on_step = [&](int64_t done, int64_t total, double) {
    const double seconds = NowSeconds() - start;
    if (seconds > 0.5 && progress.Due()) progress.Update(TokensProgress("routing", done, total, seconds));
    tokens_done = done, stopped = done < total && InterruptRequested();
    return !stopped;
  };
  auto measured = MeasureRouting(*model, documents, options, ctx);
  progress.Finish();
  if (!measured && stopped) {
    fmt::print(stderr, "stopped after {} tokens; there is no result\n", FormatCount(static_cast<double>(tokens_done)));
    return nullptr;
  }
  if (!measured) return tl::make_unexpected(measured.error());
  for (const TokenizedText& text : texts) measured->files.push_back(text.name);
  return std::make_shared<const MeasuredRouting>(std::move(*measured));
}

}  // namespace moe
