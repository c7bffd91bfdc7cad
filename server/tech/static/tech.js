// What every page of the technician's does: the service worker, what is not yet sent, the network.

import { onChange, send, status, waiting } from "./tech-outbox.js";
import { forgetUser, userKnown } from "./tech-vouchers.js";
import { by, say, show } from "./tech-words.js";

async function showUnsent() {
  const list = await waiting();
  const refused = list.filter((act) => act.state === "refused").length;
  const strip = by("unsent");
  strip.hidden = !list.length;
  strip.firstElementChild.textContent = refused ? say("unsent_refused", { n: refused }) : say("unsent", { n: list.length });
  by("offline").hidden = status().reached && navigator.onLine;
}

onChange(showUnsent);
showUnsent().catch(() => show(by("offline"), say("not_kept")));

if ("serviceWorker" in navigator) {
  navigator.serviceWorker.register("/tech/worker.js", { scope: "/tech" }).catch(() => {});
}

userKnown.finally(send);

document.addEventListener("submit", (event) => {
  if (!event.target.matches("form[action='/signout']")) return;
  forgetUser().catch(() => {});
});

// The list of sites: what does not match is left out while one types.
by("q")?.addEventListener("input", () => {
  const wanted = by("q").value.trim().toLowerCase();
  let seen = 0;
  for (const place of document.querySelectorAll("#places [data-words]")) {
    const is = place.dataset.words.includes(wanted);
    place.parentElement.hidden = !is;
    seen += is;
  }
  by("none").hidden = seen > 0;
});
by("print")?.addEventListener("click", () => print());

const pages = { site: "./tech-site.js", mount: "./tech-mount.js", walk: "./tech-walk.js", outbox: "./tech-waiting.js" };
const page = document.querySelector("[data-page]");
if (page && pages[page.dataset.page]) {
  const { start } = await import(pages[page.dataset.page]);
  await start(page);
  page.dataset.ready = "yes";
}
