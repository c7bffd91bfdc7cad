// Counting people by two buttons, in quarters of an hour as the counter keeps them.
// Each tap is kept on the phone with its instant; whole quarters are sent once, under one number.

import { notes } from "./tech-store.js";
import { newNumber } from "./tech-outbox.js";

const QUARTER_MS = 900_000, TICK_MS = 250, TIMEOUT_MS = 15_000, MOST_TAPS = 20_000, MOST_BLOCKS = 96;
const page = document.getElementById("recount"), by = (id) => document.getElementById(id);
const words = (name, values = {}) => page.dataset[`w${name[0].toUpperCase()}${name.slice(1)}`].replace(/{(\w+)}/g, (_, key) => values[key]);
const offsetMs = Number(page.dataset.now) - Date.now(); // a phone's clock may be wrong
const now = () => Date.now() + offsetMs;
const key = `recount:${page.dataset.user}:${page.dataset.spot}`;
const fresh = () => ({ number: newNumber(), begun: 0, ended: 0, taps: [], by: "", sent: false });
let count = fresh(), sending = false, drawn = "";

const keep = () => notes.put(key, count).catch(() => say(words("lost")));
const say = (text) => { by("said").textContent = text; by("said").hidden = !text; };
const clock = (ms) => new Intl.DateTimeFormat(page.dataset.language, { hour: "2-digit", minute: "2-digit", hourCycle: "h23", timeZone: page.dataset.zone }).format(ms);
const rest = (ms) => `${Math.floor(ms / 60_000)}:${String(Math.floor(ms / 1000) % 60).padStart(2, "0")}`;
const of = (from, way) => count.taps.filter(([at, other]) => at >= from && at < from + QUARTER_MS && other === way).length;

function blocks(at = now()) {
  const until = count.ended || at, found = [];
  if (!count.begun) return found;
  for (let from = count.begun; from + QUARTER_MS <= until && found.length < MOST_BLOCKS; from += QUARTER_MS) {
    found.push({ from_ms: from, entered: of(from, "in"), departed: of(from, "out") });
  }
  return found;
}

function tap(way, event) {
  const late = Math.min(Math.max(performance.now() - event.timeStamp, 0), 2_000); // a busy phone
  const at = Math.round(now() - late); // when it was touched
  if (!count.begun || at < count.begun || count.ended || count.taps.length >= MOST_TAPS) return;
  count.taps.push([at, way]);
  navigator.vibrate?.(15);
  draw();
  keep();
}

function begin() {
  if (count.begun) count.ended = now();
  else count.begun = Math.ceil(now() / QUARTER_MS) * QUARTER_MS;
  draw();
  keep();
}

async function send() {
  if (sending) return;
  count.by = by("by").value.trim();
  if (!count.by) { say(words("name")); by("by").focus(); return; }
  if (!count.ended) count.ended = now(); // what is sent under a number stays as it is
  sending = true;
  say("");
  draw();
  await keep();
  try {
    const answer = await fetch(`/accuracy/recount/${page.dataset.spot}`, {
      method: "POST",
      headers: { Accept: "application/json", "Content-Type": "application/json", "X-CSRF-Token": page.dataset.csrf },
      body: JSON.stringify({ key: count.number, counted_by: count.by, blocks: blocks(count.ended) }),
      signal: AbortSignal.timeout(TIMEOUT_MS),
      redirect: "error",
    });
    if (answer.ok) {
      count = fresh();
      await notes.remove(key);
      say(words("sent"));
    } else if (answer.status === 422 || answer.status === 409) say(words("refused", { code: (await answer.json()).code }));
    else say(words(answer.status >= 500 ? "away" : "signin"));
  } catch {
    say(words("away"));
  } finally {
    sending = false;
    draw();
  }
}

function draw() {
  const at = now(), open = count.begun > 0 && at >= count.begun && !count.ended;
  const from = open ? count.begun + Math.floor((at - count.begun) / QUARTER_MS) * QUARTER_MS : count.begun;
  by("tap-in").disabled = by("tap-out").disabled = !open;
  by("n-in").textContent = open ? of(from, "in") : 0;
  by("n-out").textContent = open ? of(from, "out") : 0;
  by("undo").disabled = !count.taps.length || count.ended > 0;
  by("begin").disabled = count.ended > 0;
  by("begin").hidden = open && !blocks(at).length;
  const line = !count.begun ? words("none") : count.ended ? words("blocks", { n: blocks(at).length })
    : open ? words("counting", { time: clock(from), rest: rest(from + QUARTER_MS - at) }) : words("begins", { time: clock(count.begun), rest: rest(count.begun - at) });
  by("clock").textContent = line;
  const whole = blocks(at), told = JSON.stringify(whole);
  by("send").disabled = sending || !whole.length;
  if (told !== drawn) {
    drawn = told;
    by("done").textContent = words("blocks", { n: whole.length });
    by("blocks").replaceChildren(...whole.map((block) => {
      const row = document.createElement("li");
      row.textContent = `${clock(block.from_ms)}: ${block.entered} / ${block.departed}`;
      return row;
    }));
  }
}

async function start() {
  count = (await notes.get(key).catch(() => undefined)) ?? count;
  by("by").value = count.by;
  by("tap-in").addEventListener("click", (event) => tap("in", event));
  by("tap-out").addEventListener("click", (event) => tap("out", event));
  by("undo").addEventListener("click", () => { count.taps.pop(); draw(); keep(); });
  by("begin").addEventListener("click", begin);
  by("send").addEventListener("click", send);
  by("restart").addEventListener("click", () => { count = fresh(); say(""); draw(); keep(); });
  draw();
  setInterval(draw, TICK_MS);
}
start();
