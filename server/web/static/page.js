"use strict";
// What every page shares: copying, and charts that draw a gap as a gap.

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  await navigator.clipboard.writeText(source.textContent.trim());
  const label = button.querySelector("[data-label]") || button;
  const before = label.textContent;
  label.textContent = button.dataset.done;
  setTimeout(() => { label.textContent = before; }, 1600);
});

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Hatches what was not observed and shades what was closed, behind the lines.
function bands(chart) {
  return {
    hooks: {
      drawClear: [(u) => {
        const { ctx, bbox } = u;
        ctx.save();
        for (const [from, until, kind] of chart.bands) {
          const left = Math.max(u.valToPos(from, "x", true), bbox.left);
          const right = Math.min(u.valToPos(until, "x", true), bbox.left + bbox.width);
          if (right <= left) continue;
          ctx.fillStyle = colour(kind === "gap" ? "--gap-soft" : "--closed");
          ctx.fillRect(left, bbox.top, right - left, bbox.height);
          if (kind !== "gap") continue;
          ctx.save();
          ctx.beginPath();
          ctx.rect(left, bbox.top, right - left, bbox.height);
          ctx.clip();
          ctx.strokeStyle = colour("--gap");
          ctx.lineWidth = devicePixelRatio;
          ctx.beginPath();
          const step = 9 * devicePixelRatio;
          for (let x = left - bbox.height; x < right; x += step) {
            ctx.moveTo(x, bbox.top + bbox.height);
            ctx.lineTo(x + bbox.height, bbox.top);
          }
          ctx.stroke();
          ctx.restore();
        }
        ctx.restore();
      }],
    },
  };
}

function options(chart, width) {
  const ink = colour("--muted"), grid = { stroke: colour("--line"), width: 1 };
  const clock = new Intl.DateTimeFormat("sv", { timeZone: chart.zone, hour: "2-digit", minute: "2-digit" });
  const time = (seconds) => clock.format(new Date(seconds * 1000));
  return {
    width, height: 260,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), chart.zone),
    cursor: { points: { size: 7 } },
    legend: { live: true },
    plugins: [bands(chart)],
    scales: { x: { time: true, range: () => [chart.from, chart.until] }, y: { range: (u, low, high) => [0, Math.max(5, (high ?? 0) * 1.1)] } },
    axes: [
      { stroke: ink, grid, ticks: grid, values: (u, splits) => splits.map(time), space: 52,
        font: "12px system-ui, sans-serif" },
      { stroke: ink, grid, ticks: grid, size: 42, font: "12px system-ui, sans-serif" },
    ],
    series: [
      { label: chart.names.time, value: (u, v) => v == null ? "–" : time(v) },
      { label: chart.names.before, stroke: colour("--before"), width: 1.5, dash: [5, 4], spanGaps: false, points: { show: false },
        value: (u, v) => v == null ? "–" : String(v) },
      { label: chart.names.now, stroke: colour("--accent"), fill: colour("--accent-soft"), width: 2.25, spanGaps: false, points: { show: false },
        value: (u, v) => v == null ? "–" : String(v) },
    ],
  };
}

const drawn = new Map();

async function draw(place) {
  const response = await fetch(place.dataset.chart, { headers: { Accept: "application/json" } });
  if (!response.ok) return;
  const chart = await response.json();
  const old = drawn.get(place);
  if (old) old.destroy();
  const width = Math.floor(place.getBoundingClientRect().width);
  const plot = new uPlot(options(chart, width), [chart.at, chart.before, chart.now], place);
  drawn.set(place, plot);
  place.dataset.drawn = String(chart.now.filter((value) => value !== null).length);
}

function drawAll() {
  for (const place of document.querySelectorAll("[data-chart]")) draw(place);
}

document.addEventListener("DOMContentLoaded", drawAll);
document.addEventListener("htmx:afterSwap", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
let resizing = 0;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(drawAll, 150); });
