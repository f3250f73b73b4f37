// The page of moe route as a browser lays it out.

#include "testing/browser.h"
#include "tests/cli/model_folder.h"

namespace moe::test {
namespace {

class RoutePage : public WithModel {};

TEST_F(RoutePage, FitsTheWindowAndShowsEveryExpert) {
  std::string text;
  for (int i = 0; i < 40; ++i) text += "</code> & 'quoted' \"words\" of many kinds, " + std::to_string(i) + "\n";
  WriteFile(dir_ / "a.txt", text);
  const std::string page = dir_ / "routes.html";
  const RunResult result = RunMoe({"route", "--model", model(), "--data", dir_ / "a.txt", "--least-count", "1", "--likes", "20",
                                   "--seconds", "0.1", "--out", page});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto shown = ShowPage(page, R"(
    const data = document.documentElement.dataset, all = s => [...document.querySelectorAll(s)];
    all('details').forEach(d => d.open = true);
    const seen = e => { const box = e.getBoundingClientRect(); return box.width > 1 && box.height > 1; };
    data.cells = all('svg.heat rect').filter(seen).length;
    data.titled = all('svg.heat rect > title').length;
    data.numbers = all('svg.heat text.number').filter(t => seen(t) && Number(t.textContent) >= 0).length;
    data.likes = all('.likes code').filter(seen).length;
    data.policies = all('table').at(-1).querySelectorAll('tbody tr').length;
    data.overflow = Math.max(document.documentElement.scrollWidth - innerWidth, 0);
  )");
  if (!shown) GTEST_SKIP() << "no chromium";
  EXPECT_EQ(shown->console, "");
  for (const char* part :
       {"data-cells=\"8\"", "data-titled=\"8\"", "data-numbers=\"8\"", "data-policies=\"11\"", "data-overflow=\"0\""}) {
    EXPECT_NE(shown->dom.find(part), std::string::npos) << part << "\n" << shown->dom.substr(0, 400);
  }
  EXPECT_EQ(shown->dom.find("data-likes=\"0\""), std::string::npos);
}

}  // namespace
}  // namespace moe::test
