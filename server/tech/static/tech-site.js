// A site's page: take it along for where there is no signal.

import { keepPages, takeAlong, voucherFor } from "./tech-vouchers.js";
import { by, clock, say } from "./tech-words.js";

export async function start(page) {
  const { site, user } = page.dataset;
  const button = by("take-along"), words = by("along-say");
  const tell = (voucher) => { words.textContent = say("along_until", { time: clock(voucher.until_ms) }); };
  button.hidden = false;
  const held = await voucherFor(site, user);
  if (held) tell(held);
  else keepPages(site).catch(() => {}); // what is open now can be read later, without a voucher too
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const made = await takeAlong(site, user);
      if (made) tell(made);
      else words.textContent = say("along_failed");
    } catch {
      words.textContent = say("along_failed");
    }
    button.disabled = false;
  });
}
