// What recipes say of mistakes.
#include "moe/base/rng.h"
#include "moe/train/recipe_fields.h"
#include "tests/train/recipe_fixture.h"

namespace moe::test {
namespace {

struct Bad {
  const char* section;
  const char* lines;
  std::vector<std::string> sets;
  const char* message;  // all of it
};

TEST(Recipe, EveryErrorIsOneLineThatNamesFileAndKey) {
  const std::vector<Bad> cases = {
      {"model", "layer = 2", {}, "[r.toml:3 model.layer] got an unknown key, expected a recipe's, the nearest is model.layers"},
      {"model", "lr = 2", {}, "[r.toml:3 model.lr] got an unknown key, expected a recipe's, the nearest is train.lr"},
      {"train",
       "experts = 2",
       {},
       "[r.toml:19 train.experts] got an unknown key, expected a recipe's, the nearest is model.experts"},
      {"train", "clip = \"on\"", {}, "[r.toml:19 train.clip] got 'on', expected a number of at least 0"},
      {"train", "clip = nan", {}, "[r.toml:19 train.clip] got nan, expected a number of at least 0"},
      {"train", "epsilon = 0", {}, "[r.toml:19 train.epsilon] got 0, expected a number above 0"},
      {"train", "beta2 = 1.0", {}, "[r.toml:19 train.beta2] got 1.0, expected a number of at least 0 and below 1"},
      {"train", "seed = 1.5", {}, "[r.toml:19 train.seed] got 1.5, expected a whole number, 0 or more"},
      {"train", "dtype = \"f16\"", {}, "[r.toml:19 train.dtype] got 'f16', expected \"f32\" or \"bf16\""},
      {"train", "context = 32", {}, "[r.toml:19 train.context] got 32, expected at most model.context 16"},
      {"train", "context = 10", {}, "[r.toml:21 train.batch_tokens] got 64, expected a multiple of the context 10"},
      {"train",
       "micro_batch_tokens = 48",
       {},
       "[r.toml:19 train.micro_batch_tokens] got 48, expected a multiple of the context 16 that divides batch_tokens 64"},
      {"train", "min_lr = 1", {}, "[r.toml:19 train.min_lr] got 1, expected at most train.lr 0.01"},
      {"train", "warmup = 2.5", {}, "[r.toml:19 train.warmup] got 2.5, expected whole steps, or below 1 a share of all"},
      {"train", "minutes = 2", {}, "[r.toml:19 train.minutes] got both train.steps and train.minutes, expected one"},
      {"train",
       "minutes = 2",
       {},
       "[r.toml:19 train.minutes] got both train.steps and train.minutes, expected one (`--set train.steps=` takes the other "
       "away)"},
      {"train", "", {"train.steps=", "train.minutes=2", "train.steps=3"}, "[--set train.minutes] got both"},
      {"model", "", {"data.files=[]"}, "[--set data.files] got no file, expected training text"},
      {"model", "", {"train.steps="}, "[r.toml train.steps] got nothing, expected train.steps or train.minutes"},
      {"model", "", {"model.top_k=5"}, "[--set model.top_k] got 5, expected at most model.experts 4"},
      {"model",
       "",
       {"model.experts=0"},
       "[--set model.experts] got 0, expected 1 or more; a model without experts is model.ffn = \"dense\" with "
       "model.ffn_width"},
      {"model", "", {"model.experts=0x0"}, "[--set model.experts] got 0, expected 1 or more"},
      {"model", "", {"model.experts=0.0"}, "[--set model.experts] got 0, expected 1 or more"},
      {"model", "", {"model.experts=false"}, "[--set model.experts] got 0, expected 1 or more"},
      {"model", "", {"model.experts=-1"}, "[--set model.experts] got -1, expected a whole number in 1..65536"},
      {"model",
       "",
       {"model.heads=3"},
       "[--set model.heads] got 3, expected a divisor of model.hidden 64 (or model.head_width)"},
      {"model", "", {"model.head_width=15"}, "[--set model.head_width] got 15, expected an even number"},
      {"model", "", {"model.kv_heads=3"}, "[--set model.kv_heads] got 3, expected a divisor of model.heads 4"},
      {"model",
       "",
       {"router.capacity_factor=-1.5"},
       "[--set router.capacity_factor] got -1.5, expected a number of at least 0"},
      {"model", "", {"router.normalize=1"}, "[--set router.normalize] got 1, expected true or false"},
      {"model", "", {"router.policy=best"}, "[--set router.policy] got 'best', expected one of mixtral, olmoe"},
      {"model", "", {"router.drop=late"}, "[--set router.drop] got 'late', expected \"position\" or \"first_choices\""},
      {"router", "", {"router.bias_rate=0.5"}, "[--set router.bias_rate] got 0.5, expected no such key: balance_bias is"},
      {"router", "", {"router.group_score=max"}, "[--set router.group_score] got 'max', expected no such key: groups is 1"},
      {"router",
       "",
       {"router.drop=score"},
       "[--set router.drop] got 'score', expected no such key: nothing is dropped without"},
      {"router", "", {"router.sinkhorn_rounds=9"}, "[--set router.sinkhorn_rounds] got 9, expected no such key: selec"},
      {"router", "", {"router.gate_width=9"}, "[--set router.gate_width] got 9, expected no such key: gate is"},
      {"router",
       "",
       {"router.gate=mlp"},
       "[r.toml router.gate_width] got 0 with the mlp gate, expected 1 or more hidden values"},
      {"router",
       "",
       {"router.load_loss=0.1"},
       "[--set router.load_loss] got 0.1, expected 0, or gaussian noise and plain top_k without groups"},
      {"model",
       "",
       {"router.capacity_factor=2", "router.target_drop=0.1", "router.most_capacity_factor=1.5"},
       "[--set router.capacity_factor] got 2, expected 1..1.5, the bounds"},
      {"model", "", {"router.groups=3"}, "[--set router.groups] got 3, expected a divisor of the 4 experts"},
      {"model",
       "",
       {"router.selection=expert_choice", "router.normalize=false"},
       "[--set router.selection] got expert_choice, expected another: experts that choose"},
      {"model", "", {"router.noise=jitter"}, "[r.toml router.noise_scale] got 0 with noise jitter, expected a number above 0"},
      {"model",
       "ffn = \"dense\"",
       {},
       "[r.toml:7 model.experts] got 4, expected no such key: model.ffn is \"dense\", which has no experts"},
      {"model", "ffn_width = 8", {}, "[r.toml:3 model.ffn_width] got 8, expected no such key: no layer is dense"},
      {"model", "dense_layers = [0]", {}, "[r.toml model.ffn_width] got nothing, expected the width of the dense layers"},
      {"model", "dense_layers = [2]\nffn_width = 8", {}, "[r.toml:3 model.dense_layers] got layer 2, expected 0..1"},
      {"model", "dense_layers = [1, 1]\nffn_width = 8", {}, "[r.toml:3 model.dense_layers] got a layer twice"},
      {"model", "dense_layers = [0, 1]\nffn_width = 8", {}, "[r.toml:3 model.dense_layers] got all layers"},
      {"model", "dense_layers = 0\nffn_width = 8", {}, "[r.toml:3 model.dense_layers] got 0, expected a list of whole numbers"},
      {"model",
       "expert_groups = [\"4 silu 32\"]",
       {},
       "[r.toml:9 model.expert_width] got 32, expected no such key: model.expert_groups gives widths"},
      {"model",
       "expert_groups = [\"5 silu 32\"]",
       {"model.expert_width="},
       "[r.toml:3 model.expert_groups] got 5 experts, expected model.experts 4"},
      {"model",
       "expert_groups = [\"3 silu 32\", \"1 swish 32\"]",
       {"model.expert_width="},
       "[r.toml:3 model.expert_groups] got the entry \"1 swish 32\", expected silu, gelu,"},
      {"model",
       "",
       {"model.expert_width=", "model.expert_groups=4 silu 30"},
       "[--set model.expert_groups: \"4 silu 30\"] got width 30, expected a multiple of 16"},
      {"model",
       "expert_groups = 4",
       {},
       "[r.toml:3 model.expert_groups] got 4, expected a list of entries like \"6 silu 256\""},
      {"model",
       "expert_groups = [4]",
       {},
       "[r.toml:3 model.expert_groups] got 4, expected a list of entries like \"6 silu 256\""},
      {"model",
       "expert_groups = []",
       {},
       "[r.toml:3 model.expert_groups] got [], expected a list of entries like \"6 silu 256\""},
      {"model",
       "expert_groups = [\"3 silu 32\", \"1 zero\"]\nexecutor = \"block-sparse\"",
       {"model.expert_width="},
       "[r.toml:4 model.executor] got block-sparse with experts that differ, expected another"},
      {"model",
       "expert_groups = [\"3 silu 32\", \"1 zero\"]\nshared_experts = 1",
       {"model.expert_width="},
       "[r.toml model.shared_expert_width] got nothing, expected a width"},
      {"model",
       "shared_expert_gate = true",
       {},
       "[r.toml:3 model.shared_expert_gate] got true without shared experts, expected both"},
      {"model",
       "layer_experts = [4, 8]",
       {},
       "[r.toml:7 model.experts] got 4, expected no such key: model.layer_experts says it layer by layer"},
      {"model",
       "",
       {"model.layer_experts=[4, 8]"},
       "[r.toml:7 model.experts] got 4, expected no such key: model.layer_experts says it layer by layer (`model.experts=` "
       "beside "
       "that takes it away)"},
      {"model",
       "layer_top_k = [2, 1]",
       {"model.top_k="},
       "[r.toml:3 model.layer_top_k] layer 1: got 1 with gates that sum to 1"},
      {"model", "", {"router.policy=olmoe"}, "[--set router.policy: model.top_k] got 8, expected at most model.experts 4"},
      {"model", "vocab_size = 258", {}, "[r.toml:3 model.vocab_size] got 258, expected at least the tokenizer's 259"},
      {"model",
       "layer_experts = [4, 7]",
       {"model.experts=", "router.groups=2"},
       "[--set router.groups] layer 1: got 2, expected a divisor of the 7 experts"},
      {"model", "vocab_size = 0", {}, "[r.toml:3 model.vocab_size] got 0, expected a whole number in 1..16777216"},
      {"model",
       "layer_experts = [4]",
       {"model.experts="},
       "[r.toml:3 model.layer_experts] got 1 numbers, expected one for each of the 2 layers"},
      {"model",
       "layer_experts = [4, 0]",
       {"model.experts="},
       "[r.toml:3 model.layer_experts] got 0 for layer 1, expected 1 or more, or the layer in model.dense_layers"},
      {"model",
       "layer_experts = [4, 8]\ndense_layers = [0]\nffn_width = 32",
       {"model.experts="},
       "[r.toml:3 model.layer_experts] got 4 for layer 0, expected 0: it is dense"},
      {"model",
       "layer_experts = [4, 1]",
       {"model.experts="},
       "[r.toml:8 model.top_k] got 2 for layer 1, expected at most its 1 experts"},
      {"model",
       "layer_experts = [4, 4]\nexpert_groups = [\"4 silu 32\"]",
       {"model.experts=", "model.expert_width="},
       "[r.toml:3 model.layer_experts] got it beside model.expert_groups"},
      {"model", "from = \"nowhere\"", {}, "[r.toml:3 model.from] got /recipes/nowhere, expected a model folder"},
      {"tokenizer",
       "vocab_size = 300",
       {},
       "[r.toml:12 tokenizer.vocab_size] got 300, expected no such key: only tokenizer.kind \"bpe\""},
      {"tokenizer", "", {"tokenizer.kind=file"}, "[r.toml tokenizer.file] got nothing, expected the tokenizer.json"},
      {"model", "", {"data.files=[1]"}, "[--set data.files] got 1, expected a list of file names"},
      {"model", "", {"train.lr"}, "[--set] got train.lr, expected key=value"},
      {"model",
       "",
       {"train.learning_rate=1"},
       "[--set] got the unknown key train.learning_rate, expected a recipe's, the nearest is "},
      {"model", "", {"train.lr=fast"}, "[--set train.lr] got 'fast', expected a number above 0"},
      {"model", "hidden = 3", {}, "[r.toml:5] got invalid TOML, expected a recipe: "},
      {"model", "[", {}, "[r.toml:3] got invalid TOML, expected a recipe: "},
  };
  for (const Bad& bad : cases) {
    const auto recipe = Small(bad.section, bad.lines, bad.sets);
    ASSERT_FALSE(recipe) << bad.message;
    const std::string message = recipe.error().Message();
    EXPECT_TRUE(message.starts_with(bad.message)) << "got      " << message << "\nexpected " << bad.message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

TEST(Recipe, AnyBytesGiveARecipeOrOneLine) {
  Rng rng(1);
  const std::string pieces =
      "[]=\"'#.,\n {}-+_\\\x01\xff"
      "0aeE:tT";
  for (int i = 0; i < 3000; ++i) {
    std::string text = kSmall;
    for (int64_t edits = 1 + rng.Below(4); edits > 0; --edits) {
      const auto at = static_cast<size_t>(rng.Below(std::ssize(text)));
      const char c = pieces[static_cast<size_t>(rng.Below(std::ssize(pieces)))];
      if (rng.Below(2) == 0) {
        text[at] = c;
      } else {
        text = rng.Below(8) == 0 ? text.substr(0, at) : text.insert(at, 1, c);
      }
      if (text.empty()) text = "[";
    }
    const auto recipe = Parse(text);
    if (!recipe) {
      ASSERT_EQ(recipe.error().Message().find('\n'), std::string::npos) << text;
    }
  }
}

// toml++'s table of spaces has no answer for these (undefined behaviour, which only sanitizers see).
TEST(Recipe, LettersBeyondAsciiAreNoSpaces) {
  for (const char* letter : {"\u00e9", "\u2e80", "\ufefb", "\u3000"}) {
    EXPECT_FALSE(Small("train", fmt::format("clip ={} 1", letter))) << letter;
    EXPECT_FALSE(Small("train", fmt::format("{} = 1", letter))) << letter;
    EXPECT_FALSE(ParseRecipe(letter, "r.toml", "/")) << letter;
    const auto good = Small("data", fmt::format("# caf{}", letter), {fmt::format("data.files=[\"{}.txt\"]", letter)});
    EXPECT_TRUE(good) << good.error().Message();
  }
}

TEST(Recipe, AWrongFlagIsWrongUsageAndAWrongFileIsNot) {
  EXPECT_EQ(Parse(kSmall, {.sets = {"train.lr=x"}}).error().exit_code, 2);
  EXPECT_EQ(Parse(kSmall, {.sets = {"nonsense"}}).error().exit_code, 2);
  EXPECT_EQ(Parse(kSmall, {.dtype = "f64"}).error().exit_code, 2);
  EXPECT_EQ(Small("train", "clip = -1").error().exit_code, 1);
  EXPECT_EQ(Parse(kSmall, {.sets = {"data.files=[]"}}).error().exit_code, 2);
  const std::string dense = "[model]\nffn = \"dense\"\nffn_width = 512\n[data]\nfiles = [\"a\"]\n[train]\n";
  const auto moe = Parse(dense + "steps = 1\n", {.sets = {"model.ffn=moe"}});
  ASSERT_FALSE(moe);
  EXPECT_EQ(moe.error().where, "r.toml:3 model.ffn_width");
  EXPECT_EQ(moe.error().exit_code, 2);
  // the advice names the key that no flag gave
  const auto both = Parse(dense + "minutes = 1\n", {.sets = {"train.steps=5"}});
  ASSERT_FALSE(both);
  EXPECT_NE(both.error().what.find("`--set train.minutes=` takes the other away"), std::string::npos) << both.error().Message();
}

}  // namespace
}  // namespace moe::test
