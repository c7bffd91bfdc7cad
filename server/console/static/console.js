"use strict";
// The console: what is live says so, rows are walked by keys, metrics are drawn with their gaps.

(() => {
  const live = document.querySelector("[data-live]");
  const part = document.querySelector("[data-events]");
  const say = (state, text) => { live.dataset.state = state; if (live.textContent !== text) live.textContent = text; };
  const clock = () => new Date().toLocaleTimeString(document.documentElement.lang, { hour: "2-digit", minute: "2-digit" });

  // The stream says that there is something else to see. Whoever comes back says by `after` (and the
  // browser by Last-Event-ID) what was seen last, and is told at once if that is not all there is.
  const LEAST_MS = 1000, MOST_MS = 30000;
  let after = part && part.dataset.after, wait = LEAST_MS, stream = null;
  function listen() {
    stream = new EventSource(`${part.dataset.events}?after=${encodeURIComponent(after)}`);
    stream.addEventListener("open", () => { wait = LEAST_MS; say("on", live.dataset.on); });
    stream.addEventListener("changed", (event) => { after = event.data; htmx.trigger(part, "console:changed"); });
    stream.addEventListener("error", () => {
      stream.close();
      if (live.dataset.state !== "off") say("off", live.dataset.off.replace("{at}", clock()));
      setTimeout(listen, wait * (0.5 + Math.random()));
      wait = Math.min(wait * 2, MOST_MS);
    });
  }
  if (part && live) {
    listen();
    addEventListener("pagehide", () => stream.close());
    addEventListener("pageshow", (event) => { if (event.persisted) listen(); });
  }

  // What could not be fetched is said, and what is there stays.
  const failed = document.querySelector("[data-failed]");
  for (const what of ["htmx:sendError", "htmx:responseError", "htmx:timeout"]) {
    document.addEventListener(what, () => { if (failed) failed.hidden = false; });
  }
  document.addEventListener("htmx:afterSwap", () => { if (failed) failed.hidden = true; });

  // What is being typed, or stands open, stays as it is while the rest is renewed.
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.target.id !== "live") return;
    event.target.keptOpen = [...event.target.querySelectorAll("details")].map((each) => each.open);
    event.target.keptTyped = [...event.target.querySelectorAll("input[id], select[id], textarea[id]")].map((each) => [each.id, each.type === "checkbox" ? each.checked : each.value, each === document.activeElement]);
    const row = document.activeElement && document.activeElement.closest("[data-row] a");
    event.target.keptFocus = row && event.target.contains(row) ? row.getAttribute("href") : null;
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.target.id !== "live") return;
    const kept = event.target.keptOpen || [];
    [...event.target.querySelectorAll("details")].forEach((each, n) => { if (kept[n]) each.open = true; });
    for (const [id, value, focused] of event.target.keptTyped || []) {
      const each = event.target.querySelector(`#${CSS.escape(id)}`);
      if (!each) continue;
      if (each.type === "checkbox") each.checked = value; else each.value = value;
      if (focused) each.focus();
    }
    const again = event.target.keptFocus && [...event.target.querySelectorAll("[data-row] a")].find((each) => each.getAttribute("href") === event.target.keptFocus);
    if (again) again.focus();
  });

  // What takes a while says so, and is asked for once.
  for (const form of document.querySelectorAll("form[data-busy]")) {
    form.addEventListener("submit", (event) => {
      const button = event.submitter;
      if (!button || button.value !== "look") return;
      form.setAttribute("aria-busy", "true");
      button.textContent = form.dataset.busy;
    });
    addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  }

  // Keys of one letter: off until somebody wants them, for they get in the way of speech input.
  const on = document.querySelector("[data-keys-on]");
  const stored = () => { try { return localStorage.getItem("keys") === "on"; } catch { return false; } };
  if (on) {
    on.checked = stored();
    on.addEventListener("change", () => { try { localStorage.setItem("keys", on.checked ? "on" : "off"); } catch { /* for this page alone */ } });
  }
  const goes = { n: "/now", i: "/incidents", d: "/devices", r: "/rollouts" };
  document.addEventListener("keydown", (event) => {
    if (!on || !on.checked || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea")) return;
    const rows = [...document.querySelectorAll("[data-row] a")].filter((each) => !each.closest("td"));
    const at = rows.indexOf(document.activeElement);
    if (event.key === "/") {
      const search = document.querySelector("input[type=search]");
      if (!search) return;
      search.focus();
    } else if ((event.key === "j" || event.key === "k") && rows.length) {
      const next = event.key === "j" ? Math.min(at + 1, rows.length - 1) : Math.max(at - 1, 0);
      rows[next].focus();
    } else if (goes[event.key]) {
      const link = document.querySelector(`.menu a[href$="${goes[event.key]}"]`);
      if (!link) return;
      link.click();
    } else return;
    event.preventDefault();
  });

  // Health metrics, one small chart each; where nothing was said there is nothing.
  const plots = new Map();
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  function drawMetric(place) {
    const chart = JSON.parse(place.dataset.metric);
    const old = plots.get(place);
    if (old) old.destroy();
    const ink = colour("--muted"), grid = { stroke: colour("--line"), width: 1 };
    const plot = new uPlot({
      width: Math.floor(place.getBoundingClientRect().width), height: 180, legend: { live: true },
      scales: { x: { time: true, range: () => [chart.from, chart.until] } },
      axes: [{ stroke: ink, grid, ticks: grid, space: 90, font: "12px system-ui, sans-serif", values: (u, splits) => splits.map((at) => new Date(at * 1000).toISOString().slice(5, 16).replace("T", " ")) }, { stroke: ink, grid, ticks: grid, size: 52, font: "12px system-ui, sans-serif" }],
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "UTC"),
      series: [
        { label: "UTC", value: (u, v) => v == null ? "–" : new Date(v * 1000).toISOString().slice(0, 16).replace("T", " ") },
        { label: chart.name, stroke: colour("--accent"), width: 2, spanGaps: false, points: { show: chart.value.length < 60, size: 4 }, value: (u, v) => v == null ? "–" : String(v) },
      ],
    }, [chart.at, chart.value], place);
    plots.set(place, plot);
    place.dataset.drawn = String(chart.value.filter((value) => value !== null).length);
  }
  const drawMetrics = () => { for (const place of document.querySelectorAll("[data-metric]")) drawMetric(place); };
  document.addEventListener("DOMContentLoaded", drawMetrics);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMetrics);
  let resizing = 0;
  addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(drawMetrics, 150); });
})();
