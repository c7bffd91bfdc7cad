"use strict";
// Curves of weeks, with gaps as gaps and uncertainty as a band; and the chain's funnel.

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const FONT = "12px system-ui, sans-serif";
const shown = (u, v) => v == null ? "–" : String(v);

function hatched(u, from, until, kind) {
  const { ctx, bbox } = u;
  const left = Math.max(u.valToPos(from, "x", true), bbox.left);
  const right = Math.min(u.valToPos(until, "x", true), bbox.left + bbox.width);
  if (right <= left) return;
  ctx.save();
  ctx.fillStyle = ink("--gap-soft");
  ctx.fillRect(left, bbox.top, right - left, bbox.height);
  ctx.beginPath();
  ctx.rect(left, bbox.top, right - left, bbox.height);
  ctx.clip();
  ctx.strokeStyle = ink("--gap");
  ctx.lineWidth = devicePixelRatio;
  ctx.beginPath();
  const step = (kind === "gap" ? 9 : 18) * devicePixelRatio;
  for (let x = left - bbox.height; x < right; x += step) {
    ctx.moveTo(x, bbox.top + bbox.height);
    ctx.lineTo(x + bbox.height, bbox.top);
  }
  ctx.stroke();
  ctx.restore();
}

function axis(extra) {
  const grid = { stroke: ink("--line"), width: 1 };
  return { stroke: ink("--muted"), grid, ticks: grid, font: FONT, ...extra };
}

function curve(chart, width) {
  const numbers = chart.now.concat(chart.before, chart.high).filter((v) => v != null);
  const top = Math.max(...numbers, 1) * 1.08;
  const label = new Map(chart.at.map((at, n) => [at, chart.labels[n]]));
  const day = (at) => new Date(at * 1000).toISOString().slice(5, 10);
  const thin = { points: { show: false }, spanGaps: false, width: 0, value: shown };
  return {
    width, height: 260, legend: { live: true }, cursor: { points: { size: 7 } },
    plugins: [{ hooks: { drawClear: [(u) => chart.bands.forEach((band) => hatched(u, ...band))] } }],
    scales: { x: { time: false }, y: { range: [0, top] } },
    axes: [
      axis({ space: 60, values: (u, splits) => splits.map(day) }),
      axis({ size: 54 }),
    ],
    series: [
      { label: chart.names.week, value: (u, v) => v == null ? "–" : label.get(v) || "–" },
      { label: chart.names.before, stroke: ink("--before"), width: 1.5, dash: [5, 4], spanGaps: false, points: { show: false }, value: shown },
      { label: chart.names.high, ...thin },
      { label: chart.names.low, ...thin },
      { label: chart.names.now, stroke: ink("--accent"), width: 2.25, spanGaps: false, points: { show: true, size: 5 }, value: shown },
    ],
    bands: [{ series: [2, 3], fill: ink("--accent-soft") }],
  };
}

// All values of the x axis in order: those of sites, and those at which the limits are drawn.
function funnelData(chart) {
  const rows = chart.events.map((x, n) => ({ x, site: n }))
    .concat(chart.steps.map((x, n) => ({ x, step: n }))).sort((a, b) => a.x - b.x);
  const pick = (name) => rows.map((row) => row.step === undefined ? null : chart[name][row.step]);
  const sites = (outside) => rows.map((row) =>
    row.site === undefined || chart.outside[row.site] !== outside ? null : chart.values[row.site]);
  return {
    rows,
    data: [rows.map((row) => row.x), pick("lower998"), pick("upper998"), pick("lower95"), pick("upper95"),
      sites(false), sites(true)],
  };
}

function funnel(chart, rows, width) {
  const line = (label, colour, dash) => ({ label, stroke: ink(colour), width: 1.5, dash, spanGaps: true, points: { show: false }, value: shown });
  const name = (u, v, n, at) => at == null || v == null ? "–" : `${chart.sites[rows[at].site]} ${v} %`;
  const dots = (label, colour) => ({
    label, paths: () => null, stroke: ink(colour), value: name,
    points: { show: true, size: 9, fill: ink(colour), stroke: ink("--card") },
  });
  const spread = Math.max(...chart.values.map(Math.abs), ...chart.upper95.slice(-1)) * 1.25 + 1;
  return {
    width, height: 300, legend: { live: false }, cursor: { points: { size: 9 } },
    scales: { x: { time: false, distr: 3 }, y: { range: [-spread, spread] } },
    axes: [
      axis({ values: (u, splits) => splits.map((v) => v == null ? "" : v >= 1000 ? `${v / 1000}k` : String(v)) }),
      axis({ size: 54, values: (u, splits) => splits.map((v) => `${v} %`) }),
    ],
    series: [
      { label: chart.names.events },
      line(chart.names.limit998, "--bad", []), line(chart.names.limit998, "--bad", []),
      line(chart.names.limit95, "--before", [5, 4]), line(chart.names.limit95, "--before", [5, 4]),
      dots(chart.names.site, "--accent"), dots(chart.names.site, "--bad"),
    ],
  };
}

const plots = new Map();

async function drawInto(place, address, make) {
  const response = await fetch(address, { headers: { Accept: "application/json" } });
  if (!response.ok) return;
  const chart = await response.json();
  plots.get(place)?.destroy();
  const width = Math.floor(place.getBoundingClientRect().width);
  const [options, data, points] = make(chart, width);
  plots.set(place, new uPlot(options, data, place));
  place.dataset.drawn = String(points);
}

function drawWeeks() {
  for (const place of document.querySelectorAll("[data-weeks]")) {
    drawInto(place, place.dataset.weeks, (chart, width) => [
      curve(chart, width), [chart.at, chart.before, chart.high, chart.low, chart.now],
      chart.now.filter((v) => v != null).length]);
  }
  for (const place of document.querySelectorAll("[data-funnel]")) {
    drawInto(place, place.dataset.funnel, (chart, width) => {
      const { rows, data } = funnelData(chart);
      return [funnel(chart, rows, width), data, chart.values.length];
    });
  }
}

document.addEventListener("DOMContentLoaded", drawWeeks);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawWeeks);
let waiting = 0;
addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(drawWeeks, 150); });
