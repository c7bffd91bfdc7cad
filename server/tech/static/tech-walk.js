// The walk test: a tap for everybody who passes, each with its instant; then the sign-off.
// Begins and ends with one of the device's own intervals, since it tells no finer.
// Times are the site's, and the page says so; the zone is kept with the test for where no signal is.

import { notes } from "./tech-store.js";
import { find, newNumber, note, now, post, send } from "./tech-outbox.js";
import { by, clock, say, show } from "./tech-words.js";

const ASK_EVERY_MS = 3_000, TICK_MS = 250;
let claim = "", number = "", key = "", test = null, about = {}, voucher = "", user = "", cellMs = 60_000;
let asked = 0, asking = false, whole = false, counts = true, signing = false;

const fresh = () => ({ begun: 0, until: 0, taps: [], sent: false, skipped: false, zone: about.zone });
const keep = () => notes.put(key, test);
const next = (ms) => Math.ceil(ms / cellMs) * cellMs;

export async function start(page) {
  const query = new URLSearchParams(location.search);
  user = page.dataset.user;
  claim = query.get("claim") ?? "";
  number = query.get("act") ?? "";
  await resolve();
  key = `walk:${number || claim}`;
  test = (await notes.get(key)) ?? fresh();
  for (const [id, way] of [["tap-in", "in"], ["tap-out", "out"]]) {
    by(id).addEventListener("click", (event) => tap(way, event));
  }
  by("undo").addEventListener("click", async () => { test.taps.pop(); await keep(); draw(); });
  by("restart").addEventListener("click", async () => { test = fresh(); whole = false; by("result").replaceChildren(); await keep(); draw(); });
  by("skip-walk").addEventListener("click", async () => { test.skipped = true; await keep(); draw(); });
  by("go").addEventListener("click", go);
  await compare().catch(() => {});
  draw();
  setInterval(tick, TICK_MS);
}

// What was claimed without signal is known by the act's number until the server has answered it.
async function resolve() {
  const act = number && (await find(number));
  if (act) {
    about = act.about;
    voucher = act.body.voucher ?? "";
    claim = act.answer?.claim ?? "";
  }
  by("walk-of").textContent = about.device ? `${about.device} · ${about.spot}` : "";
  if (about.site) by("back").href = `/tech/sites/${about.site}`;
}

async function tap(way, event) {
  const at = Math.round((await now()) - (performance.now() - event.timeStamp)); // when it was touched
  if (!test.begun || at < test.begun || (test.until && at >= test.until)) return;
  test.taps.push([at, way]);
  navigator.vibrate?.(15);
  draw();
  await keep();
}

async function go() {
  const at = await now();
  if (whole && test.signed) { location.href = `/tech/claims/${claim}/sheet`; return; }
  if (test.skipped || (test.until && at >= test.until)) await sign();
  else if (!test.begun) { test.begun = next(at + 1_500); await keep(); }
  else if (!test.until) { test.until = next(Math.max(at, test.begun + 1)); await keep(); }
  draw();
}

async function tick() {
  const at = await now();
  if (test.until && at >= test.until && !test.sent) await finish();
  if (!asking && test.begun && at >= test.begun && !whole && Date.now() - asked > ASK_EVERY_MS) compare().catch(() => {});
  draw(at);
}

// -- the device's side ---------------------------------------------------------------------------

async function compare() {
  if (!claim && number) await resolve();
  if (!claim) return;
  asking = true;
  asked = Date.now();
  try {
    const found = await post(`/tech/claims/${claim}/compare`, { begun_ms: test.begun, until_ms: test.until, taps: test.taps });
    if (!found?.answer) return;
    const { answer } = found;
    if (!test.begun) cellMs = Math.min(answer.cell_s, 60) * 1000;
    counts = answer.counts;
    whole = answer.whole;
    test.zone = answer.zone;
    by("walk-of").textContent = answer.title;
    by("back").href = `/tech/sites/${answer.site}`;
    about = { ...about, spot: about.spot ?? answer.title, site: answer.site, zone: answer.zone };
    if (answer.signed && !signing) test.signed = true;
    // the server's own markup, escaped by its templates
    if (test.begun && by("result").innerHTML !== answer.html) by("result").innerHTML = answer.html;
  } finally {
    asking = false;
  }
}

// -- what is noted -------------------------------------------------------------------------------

const common = async (kind) => ({
  kind, act: newNumber(), at_ms: await now(), user, voucher, claim: claim || number,
});

async function finish() {
  test.sent = true; // before anything waits: a tick comes every quarter of a second
  const body = { ...(await common("walk")), begun_ms: test.begun, until_ms: test.until, taps: test.taps };
  await note([{ about, body }]);
  await keep();
  send();
}

async function sign() {
  const staff = by("staff").value.trim();
  show(by("sign-problem"), staff ? "" : say("need_staff"));
  if (!staff) { by("staff").focus(); return; }
  if (signing) return;
  signing = true;
  by("go").disabled = true;
  const body = { ...(await common("sign off")), staff };
  await note([{ about, body }]);
  await send();
  const act = await find(body.act);
  signing = false;
  by("go").disabled = false;
  if (act?.state === "done") { location.href = `/tech/claims/${act.answer.claim}/sheet`; return; }
  test.signed = true;
  await keep();
  if (act?.state === "refused") show(by("sign-problem"), act.refusal.sentence);
  else show(by("sign-noted"), [act?.refusal?.sentence, say("noted", { time: clock(body.at_ms, false, test.zone) })].filter(Boolean).join(" "));
}

// -- the screen ----------------------------------------------------------------------------------

async function draw(at) {
  at ??= await now();
  const ended = test.until > 0 && at >= test.until;
  const signs = test.skipped || !counts || test.until > 0;
  by("before").hidden = test.begun > 0 || signs;
  by("during").hidden = !test.begun || ended;
  by("after").hidden = !signs;
  const n = (way) => test.taps.filter((one) => one[1] === way).length;
  by("n-in").textContent = n("in");
  by("n-out").textContent = n("out");
  by("undo").disabled = !test.taps.length;
  const open = test.begun > 0 && at >= test.begun && !ended;
  by("tap-in").disabled = by("tap-out").disabled = !open;
  show(by("walk-clock"), clockWords(at, ended));
  show(by("walk-zone"), test.zone ? say("times_of", { zone: test.zone }) : "");
  const button = by("go");
  if (!counts && !test.skipped) test.skipped = true;
  if (signing) return;
  button.disabled = (test.begun > 0 && at < test.begun) || (test.until > 0 && !ended);
  button.textContent = test.signed && whole ? say("sheet") : signs ? say(ended || test.skipped ? "sign_off" : "wait")
    : test.begun ? say(open ? "finish" : "wait") : say("begin_walk");
}

function clockWords(at, ended) {
  if (!test.begun) return "";
  const left = (ms) => Math.max(0, Math.ceil((ms - at) / 1000));
  if (at < test.begun) return say("begins_in", { time: clock(test.begun, true, test.zone), n: left(test.begun) });
  if (!test.until) return say("running", { time: clock(test.begun, true, test.zone) });
  if (!ended) return say("ends_in", { time: clock(test.until, true, test.zone), n: left(test.until) });
  return say("ended", { in: by("n-in").textContent, out: by("n-out").textContent });
}
