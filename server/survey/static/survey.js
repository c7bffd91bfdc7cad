"use strict";
// One question a screen, where scripts run; without this the form is one page and works as well.

const form = document.querySelector("form[data-steps]");
const items = form ? [...form.querySelectorAll(".item")] : [];

if (items.length > 1) {
  const send = form.querySelector("button");
  const row = document.createElement("div");
  row.className = "steps";
  const back = button(form.dataset.back, "back");
  const next = button(form.dataset.next, "next");
  const bar = document.createElement("progress");
  bar.max = items.length;
  form.prepend(bar);
  send.before(row);
  row.append(back, next, send);
  let at = 0;

  show(0, false);
  back.addEventListener("click", () => show(at - 1, true));
  next.addEventListener("click", () => show(at + 1, true));
  // A finger's choice leads on by itself; arrow keys only choose.
  let touched = false;
  form.addEventListener("pointerdown", () => { touched = true; });
  form.addEventListener("keydown", () => { touched = false; });
  form.addEventListener("change", (event) => {
    const here = at;
    if (!touched || event.target.type !== "radio" || here === items.length - 1) return;
    setTimeout(() => { if (at === here) show(here + 1, true); }, 250);
  });

  function button(text, name) {
    const made = document.createElement("button");
    made.type = "button";
    made.className = name;
    made.textContent = text;
    return made;
  }

  function show(wanted, moved) {
    at = Math.min(Math.max(wanted, 0), items.length - 1);
    items.forEach((item, number) => { item.hidden = number !== at; });
    back.hidden = at === 0;
    next.hidden = at === items.length - 1;
    send.hidden = at !== items.length - 1;
    bar.value = at + 1;
    bar.setAttribute("aria-label", form.dataset.progress.replace("{at}", at + 1).replace("{of}", items.length));
    if (moved) {
      const first = items[at].querySelector("input:checked, input, textarea");
      if (first) first.focus({ preventScroll: true });
      bar.scrollIntoView({ block: "start" });
    }
  }
}
