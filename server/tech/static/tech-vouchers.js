// Vouchers that were taken along, and the pages that go with them.

import { notes } from "./tech-store.js";
import { now, post, session } from "./tech-outbox.js";

export const PAGES = "tech-pages";
const MARGIN_MS = 60_000;

// The voucher for a site that still holds, or null.
export async function voucherFor(site, user) {
  const found = await notes.get(`voucher:${site}`);
  return found && found.user === user && found.until_ms - MARGIN_MS > (await now()) ? found : null;
}

async function keep(paths) {
  const cache = await caches.open(PAGES);
  for (const path of paths) {
    const response = await fetch(path, { headers: { Accept: "text/html" } });
    // those that lead to sign-in are not kept
    if (response.ok && !response.redirected) await cache.put(path, response);
  }
}

// Keep a site's pages.
export async function keepPages(site) {
  await userKnown;
  await keep([`/tech/sites/${site}`, `/tech/sites/${site}/mount`]);
}

// Fetch a voucher and the site's pages; null if it did not work.
export async function takeAlong(site, user) {
  const asked = await post(`/tech/sites/${site}/voucher`);
  if (!asked?.answer) return null;
  const voucher = { ...asked.answer, user };
  await notes.put(`voucher:${site}`, voucher);
  await keepPages(site);
  return voucher;
}

// What another user of this phone must not see. Acts stay: they carry their own right.
export async function forgetUser() {
  await caches.delete(PAGES);
  await notes.remove("user");
  for (const key of await notes.keys()) if (String(key).startsWith("voucher:")) await notes.remove(key);
}

// Pages kept for one technician are not for the next one on the same phone.
async function knowUser() {
  const found = await session();
  if (!found || (await notes.get("user")) === found.user) return;
  await forgetUser();
  await notes.put("user", found.user);
  await keep(["/tech", "/tech/walk", "/tech/outbox", "/tech/away"]);
}

export const userKnown = knowUser().catch(() => {}); // without signal it is who it was
