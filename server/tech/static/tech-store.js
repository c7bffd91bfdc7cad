// What the phone keeps: acts not yet sent, vouchers, walk tests under way, and some notes.
// IndexedDB, since it outlives the page and the service worker, and is written before we say so.

const opened = new Promise((done, failed) => {
  const asked = indexedDB.open("vestibule-tech", 1);
  asked.onupgradeneeded = () => {
    asked.result.createObjectStore("acts", { keyPath: "order", autoIncrement: true });
    asked.result.createObjectStore("notes");
  };
  asked.onsuccess = () => done(asked.result);
  asked.onerror = () => failed(asked.error);
});
opened.catch(() => {}); // each use says so

async function within(store, mode, use) {
  const database = await opened;
  return new Promise((done, failed) => {
    // strict: what we have called noted survives a phone whose battery ends
    const work = database.transaction(store, mode, { durability: "strict" });
    const asked = use(work.objectStore(store));
    work.oncomplete = () => done(asked?.result);
    work.onerror = work.onabort = () => failed(work.error);
  });
}

export const acts = {
  all: () => within("acts", "readonly", (store) => store.getAll()),
  put: (act) => within("acts", "readwrite", (store) => store.put(act)),
  remove: (order) => within("acts", "readwrite", (store) => store.delete(order)),
  add: (list) => within("acts", "readwrite", (store) => { for (const act of list) store.add(act); }),
};

export const notes = {
  get: (key) => within("notes", "readonly", (store) => store.get(key)),
  put: (key, value) => within("notes", "readwrite", (store) => store.put(value, key)),
  remove: (key) => within("notes", "readwrite", (store) => store.delete(key)),
  keys: () => within("notes", "readonly", (store) => store.getAllKeys()),
};
