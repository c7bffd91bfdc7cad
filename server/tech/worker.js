// Above this stand VERSION and FILES: the shell's files, which change together or not at all.
//
// Pages are asked of the server first: what it says is fresher, and only if it does not answer
// within seconds, as on a bad signal, the page that was kept is shown. Nothing else is kept: acts
// and answers go to the server, or fail and wait in the outbox.

const SHELL = `tech-shell-${VERSION}`, PAGES = "tech-pages", AWAY = "/tech/away", PATIENCE_MS = 5000;
const MOST_PAGES = 60; // a week of sites and claims; the oldest go first

self.addEventListener("install", (event) => {
  event.waitUntil((async () => {
    const shell = await caches.open(SHELL);
    await shell.addAll(FILES.map((file) => new Request(file, { cache: "reload" })));
    await keep(AWAY, await fetch(AWAY, { headers: { Accept: "text/html" } }));
    await self.skipWaiting();
  })());
});

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    for (const name of await caches.keys()) {
      if (name.startsWith("tech-shell-") && name !== SHELL) await caches.delete(name);
    }
    await self.clients.claim();
  })());
});

self.addEventListener("fetch", (event) => {
  const { request } = event, url = new URL(request.url);
  if (request.method !== "GET" || url.origin !== location.origin) return;
  if (url.pathname.startsWith("/static/")) event.respondWith(file(request));
  else if (request.mode === "navigate") event.respondWith(page(event, request, url.pathname));
});

async function file(request) {
  return (await caches.match(request, { cacheName: SHELL })) ?? fetch(request);
}

// One page for all that its query asks: its script reads the query. A way to sign-in is no page.
async function keep(path, response) {
  if (!response?.ok || response.redirected || !response.headers.get("Content-Type")?.startsWith("text/html")) return;
  const pages = await caches.open(PAGES);
  await pages.put(path, response.clone());
  for (const old of (await pages.keys()).slice(0, -MOST_PAGES)) await pages.delete(old);
}

async function page(event, request, path) {
  const fetched = fetch(request);
  // however late it comes, it is kept for the next time
  const whole = path !== "/tech" || !new URL(request.url).search; // a search is not the list
  event.waitUntil(fetched.then((response) => whole && keep(path, response.clone()), () => {}));
  const kept = await caches.match(path, { cacheName: PAGES });
  try {
    if (!kept) return await fetched;
    const late = new Promise((done) => { setTimeout(() => done(null), PATIENCE_MS); });
    const response = await Promise.race([fetched, late]);
    return response && response.status < 502 ? response : kept;
  } catch {
    return kept ?? (await caches.match(AWAY, { cacheName: PAGES })) ?? Response.error();
  }
}
