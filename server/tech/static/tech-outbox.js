// Acts: noted on the phone first, then sent, in order; each keeps its number, so that the server
// does it once however often it is sent. What the server refuses stays here with what to do.

import { acts, notes } from "./tech-store.js";

const TIMEOUT_MS = 15_000, FIRST_MS = 2_000, LONGEST_MS = 60_000, KEPT_MS = 24 * 3_600_000, MOST = 100;
const listeners = new Set();
let sending = null, timer = 0, failures = 0, reached = true, mustSignIn = false;

export const onChange = (listener) => { listeners.add(listener); };
const changed = () => { for (const listener of listeners) listener(); };
export const status = () => ({ reached, mustSignIn });

// The server's time: a phone's clock may be wrong, and a claim says from when on it counts.
let offsetMs = 0;
const offsetKnown = notes.get("offset").then((found) => { offsetMs = found ?? 0; }, () => {});
export const now = async () => { await offsetKnown; return Math.round(Date.now() + offsetMs); };
function learnTime(serverMs, sentMs) {
  const offset = serverMs - (sentMs + Date.now()) / 2;
  if (Math.abs(offset - offsetMs) < 500) return;
  offsetMs = offset;
  notes.put("offset", offset).catch(() => {});
}

// a random UUID; randomUUID itself is only there over HTTPS, and a store's network may have none
export function newNumber() {
  const drawn = crypto.getRandomValues(new Uint8Array(16));
  drawn[6] = (drawn[6] & 0x0f) | 0x40;
  drawn[8] = (drawn[8] & 0x3f) | 0x80;
  const hex = [...drawn].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
// 31 characters that nobody mistakes for each other, as the register draws its refs
export function newSpotRef() {
  const letters = "abcdefghjkmnpqrstuvwxyz23456789";
  return "spot-" + [...crypto.getRandomValues(new Uint32Array(8))].map((n) => letters[n % letters.length]).join("");
}

// Ask the server; throws if it cannot be reached.
export async function ask(path, { method = "GET", body, csrf } = {}) {
  const sent = Date.now();
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: { Accept: "application/json", ...(body && { "Content-Type": "application/json" }), ...(csrf && { "X-CSRF-Token": csrf }) },
      body: body && JSON.stringify(body),
      signal: AbortSignal.timeout(TIMEOUT_MS),
      redirect: "error",
    });
  } catch (error) {
    heard(false);
    throw error;
  }
  const away = response.status >= 502; // a proxy without its server is no contact either
  heard(!away);
  if (away) throw new Error(`answered ${response.status}`);
  const answer = response.ok ? await response.json() : null;
  if (answer?.now_ms) learnTime(answer.now_ms, sent);
  return { status: response.status, answer };
}

function heard(is) {
  if (reached === is) return;
  reached = is;
  changed();
}

// Who is signed in now, and what their acts must carry; null if nobody.
export async function session() {
  const { status: code, answer } = await ask("/tech/session");
  return code === 200 ? answer : null;
}

// POST on behalf of who is signed in; null if nobody is.
export async function post(path, body = {}) {
  const found = await session();
  return found && ask(path, { method: "POST", body, csrf: found.csrf });
}

// Note acts: returns once they are on the phone's disk.
export async function note(list) {
  const at = Date.now();
  await acts.add(list.map(({ body, about }) => ({ body, about, state: "waiting", at, refusal: null, answer: null })));
  changed();
}

export async function waiting() {
  return (await acts.all()).filter((act) => act.state !== "done");
}

export const find = async (number) => (await acts.all()).find((act) => act.body.act === number);

// Send what waits; one at a time, over all open pages of ours.
export function send() {
  sending ??= (async () => {
    try {
      if (navigator.locks) await navigator.locks.request("vestibule-outbox", sendAll);
      else await sendAll();
    } finally {
      sending = null;
    }
  })();
  return sending;
}

async function sendAll() {
  clearTimeout(timer);
  await tidy();
  const list = (await waiting()).filter((act) => act.state === "waiting").slice(0, MOST);
  if (!list.length) { failures = 0; return; }
  try {
    const found = await session();
    const { status: code, answer } = await ask("/tech/acts", {
      method: "POST", body: { acts: list.map((act) => act.body) }, csrf: found?.csrf,
    });
    if (!answer) throw new Error(`answered ${code}`);
    let again = false;
    mustSignIn = false;
    for (const [index, act] of list.entries()) {
      const given = answer.answers[index];
      if (!given) { again = true; break; }
      mustSignIn ||= given.code === "sign_in";
      again ||= given.then === "wait";
      const state = given.done ? "done" : given.then === "wait" || given.code === "sign_in" ? "waiting" : "refused";
      const body = given.done ? forgetSecrets(act.body) : act.body;
      await acts.put({ ...act, body, state, refusal: given.done ? null : given, answer: given.done ? given : null });
    }
    failures = again ? failures + 1 : 0;
    if (again) later();
  } catch {
    failures += 1;
    later();
  }
  changed();
}

// What the server has needs no label's secret on the phone any more.
function forgetSecrets({ label, proof, voucher, ...rest }) {
  return rest;
}

function later() {
  clearTimeout(timer);
  const wait = Math.min(FIRST_MS * 2 ** Math.min(failures - 1, 6), LONGEST_MS);
  timer = setTimeout(send, wait * (0.75 + Math.random() / 2));
}

// Done acts stay a day: a walk test made offline names its claim by the act that opened it.
async function tidy() {
  for (const act of await acts.all()) {
    if (act.state === "done" && Date.now() - act.at > KEPT_MS) await acts.remove(act.order);
  }
}

export async function retry(order, changes = {}) {
  const act = (await acts.all()).find((one) => one.order === order);
  if (!act) return;
  await acts.put({ ...act, body: { ...act.body, ...changes }, state: "waiting", refusal: null });
  changed();
  await send();
}

export async function remove(order) {
  await acts.remove(order);
  changed();
}

addEventListener("online", () => { failures = 0; heard(true); send(); });
addEventListener("offline", () => heard(false));
document.addEventListener("visibilitychange", () => { if (!document.hidden) send(); });
