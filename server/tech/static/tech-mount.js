// Mount or swap: scan or type the label, choose or make the spot, confirm. Works without signal.

import { bindProof, scanned, text, typed } from "./tech-label.js";
import { ask, find, newNumber, newSpotRef, note, now, retry, send } from "./tech-outbox.js";
import { scan } from "./tech-scan.js";
import { voucherFor } from "./tech-vouchers.js";
import { by, clock, say, show } from "./tech-words.js";

const WITH_REASON = new Set(["claimed_by_another", "stands_elsewhere"]);
let label = null, kind = "", stop = null, act = null, page = null, turn = 0;

const chosen = () => document.querySelector("input[name=spot]:checked");
const isNew = () => chosen()?.value === "new";

export async function start(element) {
  page = element;
  by("serial").addEventListener("input", type);
  by("code").addEventListener("input", type);
  by("again").addEventListener("click", read);
  by("change").addEventListener("click", () => { show(by("chosen"), ""); by("choices").hidden = false; });
  by("where").addEventListener("input", () => { forgetAct(); show_(); });
  by("confirm").addEventListener("click", confirm);
  const wanted = new URLSearchParams(location.search).get("spot");
  const radio = [...document.querySelectorAll("input[name=spot]")].find((one) => one.value === wanted);
  if (radio) {
    radio.checked = true;
    by("chosen-name").textContent = radio.dataset.name;
    by("chosen").hidden = false;
    by("choices").hidden = true;
    if (radio.dataset.holder) by("task").textContent = say("swapping", { device: radio.dataset.serial });
  } else if (document.querySelectorAll("input[name=spot]").length === 1) {
    document.querySelector("input[name=spot]").checked = true;
  }
  show_();
  await read();
}

// -- the label ---------------------------------------------------------------------------------

async function read() {
  forgetAct();
  label = null;
  kind = "";
  by("reading").hidden = false;
  by("found").hidden = true;
  show_();
  const mine = ++turn; // a camera that comes late is not wanted any more
  try {
    stop?.();
    by("camera").hidden = false;
    const end = await scan(by("video"), page.dataset.jsqr, (data) => {
      const found = scanned(data);
      by("scan-say").textContent = say(found ? "right" : "not_a_label");
      if (found) take(found);
      return Boolean(found);
    });
    if (mine !== turn || label) { end(); return; } // or it was typed meanwhile
    stop = end;
    by("scan-say").textContent = say("point");
  } catch {
    if (mine !== turn) return;
    by("camera").hidden = true;
    by("scan-say").textContent = say("no_camera");
    by("typing").open = true;
  }
}

function type() {
  const { say: words, bad, label: found } = typed(by("serial").value, by("code").value);
  const place = by("typed-say");
  place.textContent = say(...words);
  place.className = bad ? "say-bad" : found ? "say-good" : "muted";
  if (found) take(found);
}

async function take(found) {
  stop?.();
  stop = null;
  label = found;
  navigator.vibrate?.(40);
  by("reading").hidden = true;
  by("found").hidden = false;
  by("device").textContent = found.serial;
  by("device-note").textContent = "";
  show(by("device-problem"), "");
  show_();
  try {
    const { answer } = await ask(`/tech/sites/${page.dataset.site}/device?serial=${encodeURIComponent(found.serial)}`);
    if (label !== found || !answer) return;
    kind = answer.kind ?? "";
    by("device-note").textContent = [answer.model, answer.stands].filter(Boolean).join(" · ");
    show(by("device-problem"), answer.problem);
    if (kind) by("takes").value = kind;
    show_();
  } catch { /* without signal the server tells it later */ }
}

// -- what is to be confirmed -------------------------------------------------------------------

function show_() {
  const spot = chosen(), button = by("confirm");
  by("new-spot").hidden = !isNew();
  const swaps = spot?.dataset.holder && spot.dataset.serial !== label?.serial;
  show(by("replaces"), swaps ? say("will_replace", { device: spot.dataset.serial }) : "");
  if (spot && kind && !isNew() && spot.dataset.takes !== kind) show(by("replaces"), say("other_kind"));
  const name = isNew() ? by("name").value.trim() : spot?.dataset.name;
  const missing = !label ? "scan_first" : !spot ? "choose_spot" : !name ? "name_spot" : "";
  button.disabled = Boolean(missing);
  button.textContent = missing ? say(missing)
    : swaps ? say("swap_at", { device: spot.dataset.serial }) : say("mount_at", { spot: name });
}

function forgetAct() {
  act = null;
  by("problem").hidden = true;
  show(by("noted"), "");
}

// Under a voucher the label's secret never stays on the phone: only a proof made with it does.
async function claimAct(spot, replaces, common, voucher) {
  if (!voucher) return { ...common, kind: "claim", spot, replaces, label: text(label) };
  const proof = await bindProof(label, { voucher: voucher.ref, spot, atMs: common.at_ms });
  return { ...common, kind: "bind", spot, replaces, serial: label.serial, proof };
}

async function newActs() {
  const spot = chosen(), atMs = await now(), { site, user } = page.dataset;
  const held = await voucherFor(site, user);
  const common = () => ({ act: newNumber(), at_ms: atMs, user, voucher: held?.text ?? "" });
  const list = [];
  let ref = spot.value;
  const name = isNew() ? by("name").value.trim() : spot.dataset.name;
  const about = { device: label.serial, spot: name, site, zone: page.dataset.zone };
  if (isNew()) {
    ref = newSpotRef();
    list.push({ about, body: {
      ...common(), kind: "spot", site, ref, name, door: by("door").value.trim(),
      takes: kind || by("takes").value, purpose: by("purpose").value, height_cm: Number(by("height").value) || null,
    } });
  }
  const holder = spot.dataset.serial !== label.serial ? spot.dataset.holder ?? "" : "";
  // with signal a claim is better: it waits for the device, and its refusals are answered here
  const offline = held && !navigator.onLine;
  list.push({ about, body: await claimAct(ref, holder, common(), offline ? held : null) });
  return list;
}

async function confirm() {
  const button = by("confirm");
  if (act?.next) { location.href = act.next; return; }
  button.disabled = true;
  button.textContent = say("sending");
  by("problem").hidden = true;
  try {
    if (!act) {
      const list = await newActs();
      await note(list);
      act = { spot: list.length > 1 ? list[0].body.act : null, claim: list.at(-1).body.act };
      await send();
    } else {
      await again();
    }
    await tell();
  } catch {
    button.disabled = false;
    button.textContent = say("try_again");
    by("problem").hidden = false;
    by("problem-say").textContent = say("not_kept");
  }
}

// The same act once more, under the same number: refusals are not remembered.
async function again() {
  const reason = by("reason").value.trim();
  const spot = act.spot && (await find(act.spot));
  if (spot?.state === "refused") {
    await retry(spot.order, { name: by("name").value.trim(), door: by("door").value.trim(), height_cm: Number(by("height").value) || null });
  }
  const claim = await find(act.claim);
  if (claim && claim.state !== "done") await retry(claim.order, reason && claim.body.kind === "claim" ? { reason } : {});
}

async function tell() {
  const button = by("confirm");
  const spot = act.spot && (await find(act.spot)), claim = await find(act.claim);
  button.disabled = false;
  if (claim.state === "done") {
    location.href = `/tech/claims/${claim.answer.claim}`;
    return;
  }
  const refused = [spot, claim].find((one) => one?.state === "refused");
  if (refused) {
    by("problem").hidden = false;
    by("problem-say").textContent = refused.refusal.sentence;
    by("with-reason").hidden = !WITH_REASON.has(refused.refusal.code);
    button.textContent = say(WITH_REASON.has(refused.refusal.code) ? "anyway" : "try_again");
    by("problem").scrollIntoView({ block: "center" });
    return;
  }
  by("where").hidden = by("again").hidden = true; // it is said; what follows is the walk test
  show(by("noted"), say("noted", { time: clock(claim.body.at_ms) }));
  act.next = `/tech/walk?act=${act.claim}`;
  button.textContent = say("go_on_walk");
}
