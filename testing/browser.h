#pragma once
// Pages as a browser shows them: Debian's chromium, headless.

#include <optional>
#include <string>

namespace moe::test {

struct PageShown {
  std::string dom;      // after its scripts
  std::string console;  // lines that scripts or their errors wrote there
};

// Opens a file; nothing where there is no chromium. `script` runs last in the page.
std::optional<PageShown> ShowPage(const std::string& path, const std::string& script = "");

// For ShowPage: how many canvases have something drawn on them becomes <html data-inked>.
inline constexpr const char* kCountInk =
    "document.documentElement.dataset.inked = [...document.querySelectorAll('canvas')].filter(c => "
    "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(x => x > 0)).length;";

}  // namespace moe::test
