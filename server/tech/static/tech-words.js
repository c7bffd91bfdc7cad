// The page's own texts, in the reader's language; the catalogue is the server's.

const said = JSON.parse(document.getElementById("said").textContent);

export const say = (key, values = {}) =>
  said[key].replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));

// Without `zone` the time is the phone's.
export const clock = (ms, seconds = false, zone = undefined) =>
  new Intl.DateTimeFormat("sv", { hour: "2-digit", minute: "2-digit", ...(seconds && { second: "2-digit" }), timeZone: zone })
    .format(new Date(ms));

export const by = (id) => document.getElementById(id);

export function show(element, text) {
  element.hidden = !text;
  if (text && element.textContent !== text) element.textContent = text;
}
