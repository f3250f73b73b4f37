#include "testing/browser.h"

#include <filesystem>
#include <sstream>

#include "testing/subprocess.h"
#include "testing/temp_dir.h"

namespace moe::test {

std::optional<PageShown> ShowPage(const std::string& path, const std::string& script) {
  const std::string browser = "/usr/bin/chromium";
  if (!std::filesystem::exists(browser)) return std::nullopt;
  const TempDir dir;
  std::string html = ReadFile(path);
  if (!script.empty()) html.insert(html.rfind("</body>"), "<script>" + script + "</script>\n");
  WriteFile(dir / "page.html", html);
  // No network, and as root no sandbox; everything it wants to keep goes into the folder.
  const RunResult result =
      RunProgram({browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                  "--proxy-server=127.0.0.1:9", "--user-data-dir=" + (dir / "profile"), "--enable-logging=stderr",
                  "--window-size=1200,900", "--dump-dom", "file://" + (dir / "page.html")},
                 {.environment = {{"HOME", dir.path().string()}}});
  PageShown shown{.dom = result.out, .console = ""};
  std::istringstream lines(result.err);
  for (std::string line; std::getline(lines, line);) {
    if (line.find(":CONSOLE") != std::string::npos) shown.console += line + "\n";
  }
  return shown;
}

}  // namespace moe::test
