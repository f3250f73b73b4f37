#pragma once
// Which experts a token takes, given a value for each.

#include <cstdint>
#include <span>

#include "moe/mixture/router_config.h"
#include "moe/ops/exec_context.h"
#include "moe/tensor/mat_view.h"

namespace moe {

// Of one thread.
struct SelectionScratch {
  std::span<int64_t> keys;
  std::span<float> group_score;
  std::span<int32_t> group;

  static SelectionScratch Alloc(const RouterConfig& config, ExecContext& ctx);
};

// The k largest of v [E], best first, ties to the lowest expert (0 and -0 tie). v: no NaN.
void SelectTopK(const float* v, int64_t E, int64_t k, std::span<int64_t> keys, int32_t* chosen);

// Of v [E], in config.groups of equal size, the groups that are not among the best top_groups become -inf, or 0. Ties go to the
// lowest group.
void MaskGroups(const RouterConfig& config, float* v, const SelectionScratch& scratch);

// Values [E] that spread the token `id` over the experts, any k of them with the same chance: functions of id and expert alone.
void HashValues(int32_t id, int64_t E, float* values);

// Sinkhorn's balance of exp(logits) [T,E]: rows and columns are scaled in turn until all rows and all columns sum alike: the
// columns, before they are scaled once more, on average within the tolerance of their share; or until the rounds are over. A
// row's own factor changes no order, so what is left for selection is log(column's factor) [E], to be added to the logits.
// Float32, sums in double, in a fixed order. The k = 1 best of a balanced matrix are about balanced, the k best need not be.
// (Sinkhorn & Knopp 1967; Clark et al. 2022, S-BASE.) valid as in RouteInput. Costs rounds * T * E multiply-adds and T * E
// exponentials. Returns the rounds taken.
int64_t Sinkhorn(const RouterConfig& config, MatView<const float> logits, std::span<const uint8_t> valid,
                 std::span<float> log_column, ExecContext& ctx);

// Each expert's best tokens by score = p * score_sum [T,E], ties to the first: ceil(tokens * top_k / E) of them, at most all.
// taken [T,E]: 1 where expert and token are together, else 0. (Zhou et al. 2022)
void ChooseTokens(const RouterConfig& config, MatView<const float> p, std::span<const float> score_sum,
                  std::span<const uint8_t> valid, MatView<uint8_t> taken, ExecContext& ctx);

}  // namespace moe
