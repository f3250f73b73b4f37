#include "moe/planner/html_page.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "moe/base/check.h"
#include "moe/files/utf8.h"
#include "moe/planner/chart_js.h"

namespace moe {
namespace {

constexpr const char* kStyle = R"(
:root { color-scheme: light dark; --text: #1d2125; --soft: #5c636a; --line: #d9dde1; --back: #ffffff; --panel: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e7ea; --soft: #9aa3ab; --line: #3a4046; --back: #15181b; --panel: #1e2226; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 76rem; margin: 0 auto;
  padding: 1.5rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
p { max-width: 48rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
caption { text-align: left; color: var(--soft); padding-bottom: 0.3rem; white-space: nowrap; }
th, td { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
.word { text-align: left; } td.group { text-align: left; font-weight: 600; background: var(--panel); }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; }
.drawing { position: relative; } .drawn .drawing { height: 24rem; } .fallback { max-width: 100%; overflow-x: auto; }
.drawing svg { max-width: 100%; min-width: 40rem; height: 24rem; }
.chart canvas { display: none; } .drawn canvas { display: block; } .drawn .fallback { display: none; }
details, footer { color: var(--soft); font-size: 0.85rem; margin-top: 2rem; } pre { white-space: pre-wrap; }
@media print { body { max-width: none; } figure, tr { break-inside: avoid; } }
)";

// Draws every chart; the number drawn becomes <html data-charts>, for tests.
constexpr const char* kScript = R"((() => {
  const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const paint = () => { Chart.defaults.color = color('--text'); Chart.defaults.borderColor = color('--line'); };
  Chart.defaults.animation = false;
  Chart.defaults.maintainAspectRatio = false;
  Chart.defaults.plugins.legend.labels.filter = (item, data) => !data.datasets[item.datasetIndex].unnamed;
  const tip = Chart.defaults.plugins.tooltip.callbacks, title = tip.title;
  tip.title = function(items) {
    const label = items[0]?.raw?.label;
    return label ? `${items[0].chart.config.options.marks.label} ${label}` : title.call(this, items);
  };
  Chart.register({
    id: 'marks',
    beforeDatasetsDraw(chart) {
      const marks = chart.config.options.marks;
      if (!marks) return;
      const {ctx, chartArea: area, scales: {x}} = chart;
      const at = v => Math.min(Math.max(x.getPixelForValue(v), area.left), area.right);
      ctx.save();
      ctx.font = '12px system-ui, sans-serif';
      for (const band of marks.bands) {
        const left = at(band.from), wide = at(band.to) - left;
        ctx.fillStyle = band.color ? band.color + '26' : 'transparent';
        ctx.fillRect(left, area.top, wide, area.height);
        ctx.fillStyle = color('--soft');
        ctx.textAlign = 'center';
        if (ctx.measureText(band.name).width + 4 < wide) ctx.fillText(band.name, left + wide / 2, area.top + 15);
      }
      ctx.strokeStyle = ctx.fillStyle = color('--text');
      ctx.setLineDash([2, 3]);
      marks.lines.filter(m => m.x >= x.min && m.x <= x.max).forEach((mark, i) => {
        const right = at(mark.x) + ctx.measureText(mark.name).width + 8 > area.right;
        ctx.beginPath(), ctx.moveTo(at(mark.x), area.top), ctx.lineTo(at(mark.x), area.bottom), ctx.stroke();
        ctx.textAlign = right ? 'right' : 'left';
        ctx.fillText(mark.name, at(mark.x) + (right ? -4 : 4), area.bottom - 8 - 15 * i);
      });
      ctx.restore();
    },
    afterDatasetsDraw(chart) {
      if (!chart.config.options.marks?.show) return;
      const {ctx, chartArea: area} = chart, taken = [];
      ctx.save();
      ctx.font = '11px system-ui, sans-serif';
      ctx.fillStyle = color('--text');
      chart.data.datasets.forEach((set, s) => !set.quiet && chart.isDatasetVisible(s) && chart.getDatasetMeta(s).data.forEach((point, i) => {
        const text = set.data[i].label, wide = text && ctx.measureText(text).width;
        const left = point.x + 5 + wide > area.right ? point.x - 5 - wide : point.x + 5, y = point.y - 4;
        if (!text || taken.some(t => left < t.left + t.wide + 3 && t.left < left + wide + 3 && Math.abs(y - t.y) < 12)) return;
        taken.push({left, wide, y});
        ctx.fillText(text, left, y);
      }));
      ctx.restore();
    }
  });
  paint();
  const charts = [...document.querySelectorAll('figure.chart')].map(figure => {
    figure.classList.add('drawn');
    const config = JSON.parse(figure.querySelector('script').textContent);
    for (const axis of Object.values(config.options?.scales ?? {})) {
      if (!axis.at) continue;
      axis.afterBuildTicks = scale => scale.ticks = axis.at.map(value => ({value}));
      axis.ticks = {...axis.ticks, callback: value => value.toLocaleString('en', {maximumSignificantDigits: 6})};
    }
    return new Chart(figure.querySelector('canvas'), config);
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { paint(); charts.forEach(c => c.update()); });
  addEventListener('beforeprint', () => charts.forEach(c => c.resize()));
  document.documentElement.dataset.charts = charts.length;
})();)";

constexpr const char* kChartJsLicence =
    R"(Chart.js (https://www.chartjs.org) is in this file. Copyright (c) 2014-2022 Chart.js Contributors. The MIT License:

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.)";

// JSON inside a <script>: nothing in it may end the element.
std::string ScriptJson(const nlohmann::json& json) {
  std::string out;
  for (const char c : json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)) {
    out += c == '<' ? std::string("\\u003c") : std::string(1, c);
  }
  return out;
}

}  // namespace

std::string HtmlEscape(std::string_view text) {
  Utf8Stream stream;
  const std::string whole = stream.Push(text) + stream.Flush();
  std::string out;
  for (const char c : whole) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string HtmlHeading(std::string_view text) {
  return fmt::format("<h2>{}</h2>\n", HtmlEscape(text));
}

std::string HtmlParagraph(std::string_view text) {
  return fmt::format("<p>{}</p>\n", HtmlEscape(text));
}

std::string HtmlTableOf(const HtmlTable& table) {
  const auto side = [&](size_t column) { return column < table.text_columns ? " class=\"word\"" : ""; };
  std::string out = "<div class=\"wide\"><table>\n";
  if (!table.caption.empty()) out += fmt::format("<caption>{}</caption>\n", HtmlEscape(table.caption));
  out += "<thead><tr>";
  for (size_t i = 0; i < table.head.size(); ++i) out += fmt::format("<th{}>{}</th>", side(i), HtmlEscape(table.head[i]));
  out += "</tr></thead>\n<tbody>\n";
  for (const auto& row : table.rows) {
    MOE_CHECK(row.size() == table.head.size() || row.size() == 1, "got {} cells under {} headings", row.size(),
              table.head.size());
    out += "<tr>";
    if (row.size() == 1 && table.head.size() > 1) {
      out += fmt::format("<td class=\"group\" colspan=\"{}\">{}</td>", table.head.size(), HtmlEscape(row[0]));
    } else {
      for (size_t i = 0; i < row.size(); ++i) out += fmt::format("<td{}>{}</td>", side(i), HtmlEscape(row[i]));
    }
    out += "</tr>\n";
  }
  return out + "</tbody>\n</table></div>\n";
}

std::string HtmlChart(std::string_view title, const nlohmann::json& config, std::string_view fallback) {
  return fmt::format(
      "<figure class=\"chart\">\n<figcaption>{0}</figcaption>\n<div class=\"drawing\"><canvas role=\"img\" aria-label=\"{0}\">"
      "</canvas><div class=\"fallback\">{1}</div></div>\n<script type=\"application/json\">{2}</script>\n</figure>\n",
      HtmlEscape(title), fallback, ScriptJson(config));
}

std::string HtmlPage(std::string_view title, std::string_view body) {
  const bool charts = body.find("<figure class=\"chart\">") != std::string_view::npos;
  std::string out = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{0}</title>\n<style>{1}</style>\n"
      "</head>\n<body>\n<h1>{0}</h1>\n",
      HtmlEscape(title), kStyle);
  out += body;
  if (charts) {
    out += fmt::format("<footer><details><summary>Licence of Chart.js</summary>\n<pre>{}</pre></details></footer>\n",
                       HtmlEscape(kChartJsLicence));
    out += "<script>\n";
    out += ChartJs();
    out += "\n</script>\n<script>\n";
    out += kScript;
    out += "\n</script>\n";
  }
  return out + "</body>\n</html>\n";
}

}  // namespace moe
