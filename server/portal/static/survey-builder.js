"use strict";
// Count the seconds of a draft while it is typed; the server counts them the same way and decides.

const builder = document.querySelector("form[data-budget]");
if (builder) {
  const total = document.getElementById("seconds");
  const languages = builder.dataset.languages.split(" ");
  const length = (name) => Math.max(0, ...languages.map((code) => {
    const field = builder.elements[`${name}_${code}`];
    return field ? field.value.trim().length : 0;
  }));
  const lines = (name) => languages.map((code) => {
    const field = builder.elements[`${name}_${code}`];
    return field ? field.value.split("\n").map((line) => line.trim()).filter(Boolean) : [];
  });
  const options = (row) => {
    const there = row.querySelector("[data-options]");
    if (!there) return 0;
    const spoken = lines(there.dataset.options);
    const most = Math.max(0, ...spoken.map((each) => each.length));
    let sum = 0;
    for (let at = 0; at < most; at += 1) sum += Math.max(...spoken.map((each) => (each[at] ?? "").length));
    return sum;
  };
  const count = () => {
    const statements = [];
    let others = 0;
    for (const row of builder.querySelectorAll("[data-item]")) {
      const name = row.dataset.item, n = length(name);
      const cost = Number(row.dataset.fixed) + Number(row.dataset.each) * (n + options(row));
      const used = n > 0 || name === "all";
      const shown = row.querySelector("[data-cost]");
      if (shown) shown.textContent = used ? `${cost.toFixed(1)} s` : "";
      if (!used) continue;
      if (name.startsWith("item")) statements.push(cost);
      else others += cost;
    }
    const places = Number(builder.elements.shown.value) || 6;
    const longest = statements.sort((a, b) => b - a).slice(0, places);
    const sum = longest.reduce((a, b) => a + b, others);
    total.textContent = sum.toFixed(1);
    total.closest("[data-total]").classList.toggle("note", sum > Number(builder.dataset.budget));
  };
  builder.addEventListener("input", count);
  count();
}
