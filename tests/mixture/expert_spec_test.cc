// Experts as recipes and config.json write them.
#include "moe/mixture/expert_spec.h"

#include <gtest/gtest.h>

#include "moe/mixture/moe_layer.h"
#include "testing/matchers.h"

namespace moe::test {
namespace {

std::string ErrorOf(const std::string& text) {
  const auto group = ParseExpertGroup(text, "r.toml");
  return group ? "none" : group.error().Message();
}

TEST(ExpertGroup, ReadsWhatItWrites) {
  for (const char* text :
       {"6 silu 256", "1 relu2 512 plain", "12 gelu 16 plain deep", "3 gelu_tanh 32 deep", "1 zero", "2 copy", "4 constant"}) {
    const auto group = ParseExpertGroup(text, "test");
    ASSERT_TRUE(group) << group.error().Message();
    EXPECT_EQ(ToText(*group), text);
  }
  const ExpertGroup group = ParseExpertGroup("  2  gelu 48   deep plain ", "test").value();
  EXPECT_EQ(group.count, 2);
  EXPECT_EQ(group.spec, (ExpertSpec{.activation = Activation::kGelu, .gated = false, .width = 48, .depth = 2}));
  EXPECT_EQ(ParseExpertGroup("1 constant", "test").value().spec.kind, ExpertKind::kConstant);
}

TEST(ExpertGroup, EveryErrorNamesTheEntry) {
  const std::string count = R"(expected a count first, as in "6 silu 256" or "1 zero")";
  for (const char* text : {"", "silu 256", "0 zero", "-1 zero", "1.5 zero", "99999999999999999999 zero", "x zero"}) {
    EXPECT_EQ(ErrorOf(text), fmt::format(R"([r.toml] got the entry "{}", {})", text, count));
  }
  EXPECT_EQ(
      ErrorOf("6 swish 256"),
      R"([r.toml] got the entry "6 swish 256", expected silu, gelu, gelu_tanh, relu2, zero, copy or constant after the count)");
  EXPECT_EQ(ErrorOf("6 silu"), R"([r.toml] got the entry "6 silu", expected a width after the activation, as in "6 silu 256")");
  EXPECT_EQ(ErrorOf("6 silu wide"),
            R"([r.toml] got the entry "6 silu wide", expected a width after the activation, as in "6 silu 256")");
  EXPECT_EQ(ErrorOf("6 silu 20"), R"([r.toml: "6 silu 20"] got width 20, expected a multiple of 16)");
  EXPECT_EQ(ErrorOf("1 zero 16"),
            R"([r.toml] got the entry "1 zero 16", expected nothing after zero, copy and constant: they have no width)");
  for (const char* text : {"1 silu 16 plain plain", "1 silu 16 deep deep", "1 silu 16 thin"}) {
    EXPECT_EQ(ErrorOf(text),
              fmt::format(R"([r.toml] got the entry "{}", expected at most plain and deep, each once, after the width)", text));
  }
}

MoeConfig ConfigOf(const std::vector<std::string>& entries) {
  MoeConfig config{.router = {.num_experts = 0, .top_k = 2}};
  std::vector<ExpertGroup> groups;
  for (const std::string& entry : entries) {
    groups.push_back(ParseExpertGroup(entry, "test").value());
    config.router.num_experts += groups.back().count;
  }
  SetExperts(groups, config);
  return config;
}

TEST(Experts, ThoseThatAreAlikeAreNoGroups) {
  const MoeConfig alike = ConfigOf({"3 silu 32", "1 silu 32"});
  EXPECT_TRUE(alike.groups.empty());
  EXPECT_EQ(alike.expert_width, 32);
  ASSERT_EQ(alike.experts().size(), 1u);
  EXPECT_EQ(alike.experts()[0], (ExpertGroup{.spec = {.width = 32}, .count = 4}));
  EXPECT_EQ(ExpertsText(alike), "4 experts of width 32");
  const MoeConfig plain = ConfigOf({"4 silu 32 plain"}), mixed = ConfigOf({"1 silu 32", "1 zero", "2 zero", "1 silu 32"});
  EXPECT_EQ(plain.groups.size(), 1u);
  EXPECT_EQ(plain.expert_width, 0);
  EXPECT_EQ(mixed.groups.size(), 3u);
  EXPECT_EQ(ExpertsText(mixed), "5 experts (1 silu 32, 3 zero, 1 silu 32)");
}

TEST(Experts, ValuesAreCountedByHand) {
  const int64_t D = 10;
  EXPECT_EQ(ExpertValues(ConfigOf({"2 silu 32"}), D), 2 * 3 * D * 32);
  EXPECT_EQ(ActiveExpertValues(ConfigOf({"8 silu 32"}), D), 2 * 3 * D * 32);
  EXPECT_EQ(ExpertValues(ConfigOf({"1 silu 32 plain"}), D), 2 * D * 32);
  EXPECT_EQ(ExpertValues(ConfigOf({"1 gelu 32 deep"}), D), 3 * D * 32 + 2 * 32 * 32);
  EXPECT_EQ(ExpertValues(ConfigOf({"1 gelu 32 plain deep"}), D), 2 * D * 32 + 32 * 32);
  EXPECT_EQ(ExpertValues(ConfigOf({"1 zero", "2 copy"}), D), 0);
  EXPECT_EQ(ExpertValues(ConfigOf({"2 constant"}), D), 2 * 3 * D);
  EXPECT_EQ(ActiveExpertValues(ConfigOf({"3 silu 32", "1 zero"}), D), 2 * (3 * 3 * D * 32) / 4);
}

TEST(Experts, WhatDoesNotGoTogetherIsRefused) {
  const auto error = [](MoeConfig config, auto change) {
    change(config);
    const Status status = Validate(config, "test");
    return status ? "none" : status.error().Message();
  };
  const MoeConfig mixed = ConfigOf({"2 silu 32", "1 zero"});
  EXPECT_EQ(error(mixed, [](MoeConfig&) {}), "none");
  EXPECT_EQ(
      error(mixed, [](MoeConfig& c) { c.executor = Executor::kBlockSparse; }),
      "[test: executor] got block-sparse with experts that differ, expected another: its blocks are those of one shape of "
      "gated SiLU experts");
  EXPECT_EQ(error(mixed, [](MoeConfig& c) { c.router.num_experts = 4; }),
            "[test: expert_groups] got 3 experts in all groups, expected 4");
  EXPECT_EQ(error(mixed, [](MoeConfig& c) { c.num_shared_experts = 1; }),
            "[test: shared_expert_width] got nothing, expected a width: experts that differ have none to take");
  EXPECT_EQ(error(mixed, [](MoeConfig& c) { c.groups[0].spec.width = 24; }),
            "[test: \"2 silu 24\"] got width 24, expected a multiple of 16");
  EXPECT_EQ(error(mixed, [](MoeConfig& c) { c.groups[0].spec.depth = 3; }),
            "[test: \"2 silu 32\"] got depth 3, expected 1 or 2");
  EXPECT_EQ(error(mixed, [](MoeConfig& c) { c.shared_gate = true; }),
            "[test: shared_expert_gate] got true without shared experts, expected both");
}

}  // namespace
}  // namespace moe::test
