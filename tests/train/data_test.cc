#include "moe/train/data.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "moe/files/bpe_train.h"
#include "moe/files/utf8.h"
#include "moe/train/training_data.h"
#include "testing/random.h"

namespace moe {
namespace {

// Documents of the given lengths; every token is different, so that a batch can be traced back.
Corpus Numbered(const std::vector<int64_t>& lengths) {
  Corpus corpus;
  int32_t next = 1000;
  for (const int64_t length : lengths) {
    corpus.documents.emplace_back();
    for (int64_t i = 0; i < length; ++i) corpus.documents.back().push_back(next++);
    corpus.num_tokens += length;
  }
  return corpus;
}

// What must hold for every batch: sequences begin with BOS at position 0, inputs are the targets before, targets of one
// sequence are neighbours in one document, and no sequence is longer than the context.
void CheckBatch(const Batch& batch, int64_t context, int32_t bos) {
  ASSERT_EQ(batch.rows.size(), batch.targets.size());
  for (size_t i = 0; i < batch.rows.size(); ++i) {
    const RowInfo& row = batch.rows[i];
    ASSERT_TRUE(row.valid);
    ASSERT_LT(row.position, context);
    const bool first = i == 0 || batch.rows[i - 1].sequence != row.sequence;
    if (first) {
      ASSERT_EQ(row.position, 0);
      ASSERT_EQ(row.token_id, bos);
    } else {
      ASSERT_EQ(row.position, batch.rows[i - 1].position + 1);
      ASSERT_EQ(row.token_id, batch.targets[i - 1]);
      ASSERT_EQ(batch.targets[i], batch.targets[i - 1] + 1);
    }
  }
}

TEST(DataStream, EveryTokenOncePerEpochForAnyCorpusAndBatch) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    std::vector<int64_t> lengths(static_cast<size_t>(1 + rng.Below(4)));
    for (int64_t& length : lengths) length = rng.Below(40);
    lengths[0] += 1;
    const Corpus corpus = Numbered(lengths);
    const int64_t context = 1 + rng.Below(12), batch_tokens = 1 + rng.Below(50), epochs = 3;
    DataStream stream(corpus, context, 7, seed);
    std::vector<int32_t> targets;
    Batch batch;
    while (std::ssize(targets) < epochs * corpus.num_tokens) {
      stream.Read(std::ssize(targets), batch_tokens, batch);
      ASSERT_EQ(std::ssize(batch.targets), batch_tokens);
      CheckBatch(batch, context, 7);
      targets.insert(targets.end(), batch.targets.begin(), batch.targets.end());
    }
    std::vector<int32_t> all;
    for (const auto& document : corpus.documents) all.insert(all.end(), document.begin(), document.end());
    for (int64_t epoch = 0; epoch < epochs; ++epoch) {
      std::vector<int32_t> seen(targets.begin() + epoch * corpus.num_tokens, targets.begin() + (epoch + 1) * corpus.num_tokens);
      std::ranges::sort(seen);
      ASSERT_EQ(seen, all) << "epoch " << epoch;
    }
  }
}

TEST(DataStream, IsAFunctionOfSeedAndPosition) {
  const Corpus corpus = Numbered({100, 3, 57});
  DataStream forwards(corpus, 8, 7, 5), anywhere(corpus, 8, 7, 5), other(corpus, 8, 7, 6);
  std::vector<Batch> batches(12);
  for (int64_t i = 0; i < 12; ++i) forwards.Read(i * 40, 40, batches[static_cast<size_t>(i)]);
  bool differs = false;
  for (const int64_t i : {11, 0, 7, 7, 3, 10}) {
    Batch batch;
    anywhere.Read(i * 40, 40, batch);
    EXPECT_EQ(batch.targets, batches[static_cast<size_t>(i)].targets);
    other.Read(i * 40, 40, batch);
    differs = differs || batch.targets != batches[static_cast<size_t>(i)].targets;
  }
  EXPECT_TRUE(differs) << "the seed changes nothing";
}

TEST(DataStream, OrderAndBordersChangeFromEpochToEpoch) {
  const Corpus corpus = Numbered({640});
  DataStream stream(corpus, 16, 7, 1);
  std::map<int32_t, int> starts;  // targets that stood first in a full window
  Batch batch;
  for (int64_t epoch = 0; epoch < 8; ++epoch) {
    stream.Read(epoch * 640, 16, batch);
    ++starts[(batch.targets[0] - 1000) % 16];
  }
  EXPECT_GT(starts.size(), 3u);
}

TEST(DataStream, FullWindowsComeWhole) {
  const Corpus corpus = Numbered({1000});
  DataStream stream(corpus, 16, 7, 3);
  Batch batch;
  for (int64_t step = 0; step < 15; ++step) {
    stream.Read(step * 64, 64, batch);
    EXPECT_EQ(batch.rows.back().sequence, 3);
  }
}

TEST(Tokenize, PiecesAndThreadsChangeNothing) {
  Rng rng(1);
  std::string text;
  while (text.size() < (1u << 20) + 200000) {  // two pieces
    for (int64_t word = 1 + rng.Below(9); word > 0; --word) {
      for (int64_t i = 1 + rng.Below(7); i > 0; --i) text += static_cast<char>('a' + rng.Below(4));
      text += rng.Below(5) == 0 ? "," : " ";
    }
    text += std::vector<std::string>{"\n", "\n\n", "\n \n", ".\n", "\r\n", "\n\u00e9"}[static_cast<size_t>(rng.Below(6))];
  }
  const std::vector<std::string> texts = {text, "short", text.substr(0, 100)};
  const auto tokenizer = TrainBpe(std::vector<std::string>{text.substr(0, 20000)}, 400);
  ASSERT_TRUE(tokenizer);
  ThreadPool one(1), three(3);
  const Corpus a = Tokenize(texts, *tokenizer, true, three), b = Tokenize(texts, *tokenizer, false, one);
  EXPECT_EQ(a.documents, b.documents);
  EXPECT_EQ(a.num_tokens, b.num_tokens);
  EXPECT_EQ(a.num_bytes, static_cast<int64_t>(2 * 0 + texts[0].size() + texts[1].size() + texts[2].size()));
  EXPECT_EQ(tokenizer->Decode(a.documents[0]), text);
  EXPECT_EQ(Digest(a), Digest(b));
}

TEST(Tokenize, DigestSeesTokensAndBorders) {
  const Corpus corpus = Numbered({5, 6});
  Corpus moved = corpus, changed = corpus;
  moved.documents[0].push_back(moved.documents[1].front());
  moved.documents[1].erase(moved.documents[1].begin());
  ++changed.documents[1][3];
  EXPECT_EQ(Digest(corpus), Digest(Numbered({5, 6})));
  EXPECT_NE(Digest(corpus), Digest(moved));
  EXPECT_NE(Digest(corpus), Digest(changed));
}

TEST(SpreadWindows, AreWindowsOfTheWholeEvaluation) {
  const Corpus corpus = Numbered({100, 7, 64});
  const std::vector<int32_t> two_bytes_each(2000, 2);
  EXPECT_EQ(SpreadWindows(corpus, two_bytes_each, 16, 0).size(), 3u);
  EXPECT_EQ(SpreadWindows(corpus, two_bytes_each, 16, 171).size(), 3u);
  const auto some = SpreadWindows(corpus, two_bytes_each, 16, 70);
  ASSERT_EQ(some.size(), 4u);
  int32_t before = 0;
  for (const Document& window : some) {
    EXPECT_LE(window.tokens.size(), 16u);
    EXPECT_EQ(window.num_bytes, 2 * std::ssize(window.tokens));
    EXPECT_GT(window.tokens[0], before);
    before = window.tokens[0];
    const int32_t in_document = window.tokens[0] - (window.tokens[0] >= 1107 ? 1107 : window.tokens[0] >= 1100 ? 1100 : 1000);
    EXPECT_EQ(in_document % 16, 0);
  }
  EXPECT_EQ(SpreadWindows(corpus, two_bytes_each, 16, 1).size(), 1u);
}

TEST(CutPassages, KeepEveryByteInOrderAndCodePointsWhole) {
  std::string lines, letters;
  while (lines.size() < 300'000) lines += "a line of some words\n";
  while (letters.size() < 300'000) letters += "\u00e9";  // no line ends
  for (const std::string& text : {lines, letters, lines.substr(0, 2000), std::string("short"), std::string()}) {
    for (const double share : {0.03, 0.2, 0.5}) {
      const CutText cut = CutPassages(text, share);
      size_t at = 0, passage = 0, cut_bytes = 0;
      for (size_t i = 0; i < cut.rest.size() || passage < cut.passages.size();) {  // they take turns
        const auto is_next = [&](const std::string& part) { return text.compare(at, part.size(), part) == 0; };
        if (i < cut.rest.size() && i <= passage) {
          EXPECT_TRUE(is_next(cut.rest[i]));
          at += cut.rest[i++].size();
        } else {
          ASSERT_LT(passage, cut.passages.size());
          EXPECT_TRUE(is_next(cut.passages[passage]));
          EXPECT_EQ(ValidUtf8Prefix(cut.passages[passage]), cut.passages[passage].size());
          cut_bytes += cut.passages[passage].size();
          at += cut.passages[passage++].size();
        }
      }
      EXPECT_EQ(at, text.size());
      if (text.size() < 100) {
        EXPECT_EQ(cut_bytes, 0u);
      } else {
        EXPECT_NEAR(static_cast<double>(cut_bytes), share * static_cast<double>(text.size()),
                    0.1 * share * static_cast<double>(text.size()) + 25);
      }
    }
  }
  EXPECT_EQ(CutPassages(lines, 0.03).passages.size(), 4u);
  EXPECT_EQ(CutPassages(lines, 0.03).passages[0].front(), 'a');
}

}  // namespace
}  // namespace moe
