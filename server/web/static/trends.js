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
  const day = new Map(chart.at.map((at, n) => [at, chart.days[n]]));
  const every = Math.ceil(chart.at.length / Math.max(1, (width - 64) / 64));
  const bounded = chart.high.some((v) => v != null);
  const thin = { points: { show: false }, spanGaps: false, width: 0, value: shown };
  return {
    width, height: 260, legend: { live: true }, cursor: { points: { size: 7 } },
    plugins: [{ hooks: { drawClear: [(u) => chart.bands.forEach((band) => hatched(u, ...band))] } }],
    scales: { x: { time: false }, y: { range: [0, top] } },
    axes: [
      axis({ splits: () => chart.at.filter((at, n) => n % every === 0), values: (u, splits) => splits.map((at) => day.get(at)) }),
      axis({ size: 64 }),
    ],
    series: [
      { label: chart.names.week, value: (u, v) => v == null ? "–" : label.get(v) || "–" },
      { label: chart.names.before, stroke: ink("--before"), width: 1.5, dash: [5, 4], spanGaps: false, points: { show: false }, value: shown },
      { label: chart.names.high, ...thin, class: bounded ? "" : "hidden" },
      { label: chart.names.low, ...thin, class: bounded ? "" : "hidden" },
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

// The site nearest to the pointer, as the line below the funnel names it.
function nearest(chart, rows, at) {
  for (let step = 0; step < rows.length; step += 1) {
    for (const row of [rows[at - step], rows[at + step]]) {
      if (row?.site !== undefined) return `${chart.sites[row.site]}: ${chart.values[row.site]} %`;
    }
  }
  return "";
}

function funnel(chart, rows, width, named) {
  const line = (colour, dash) => ({ stroke: ink(colour), width: 1.5, dash, spanGaps: true, points: { show: false } });
  const dots = (colour) => ({ paths: () => null, points: { show: true, size: 9, fill: ink(colour), stroke: ink("--card") } });
  const spread = Math.max(...chart.values.map(Math.abs), ...chart.upper95) * 1.1 + 0.5;
  const ends = [chart.steps[0], chart.steps[chart.steps.length - 1]];
  const many = (v) => v == null ? "" : v >= 10000 ? `${Math.round(v / 1000)}k` : String(Math.round(v));
  return {
    width, height: 300, legend: { show: false }, cursor: { points: { show: false } },
    hooks: { setCursor: [(u) => { if (named && u.cursor.idx != null) named.textContent = nearest(chart, rows, u.cursor.idx); }] },
    scales: { x: { time: false, distr: 3, range: () => ends }, y: { range: [-spread, spread] } },
    axes: [
      axis({ splits: () => [0, 13, 26, 39].map((n) => chart.steps[n]), filter: (u, splits) => splits, values: (u, splits) => splits.map(many) }),
      axis({ size: 54, values: (u, splits) => splits.map((v) => `${v} %`) }),
    ],
    series: [
      {}, line("--bad", []), line("--bad", []), line("--before", [5, 4]), line("--before", [5, 4]),
      dots("--accent"), dots("--bad"),
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
      const named = document.getElementById("funnel-named");
      return [funnel(chart, rows, width, named), data, chart.values.length];
    });
  }
}

document.addEventListener("DOMContentLoaded", drawWeeks);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawWeeks);
let waiting = 0;
addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(drawWeeks, 150); });
