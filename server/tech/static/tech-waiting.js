// What was not sent yet: what it is, why the server refused it, and what to do.

import { onChange, remove, retry, send, status, waiting } from "./tech-outbox.js";
import { by, clock, say } from "./tech-words.js";

const NAMES = { spot: "act_spot", claim: "act_claim", bind: "act_claim", walk: "act_walk", "sign off": "act_sign" };
const WITH_REASON = new Set(["claimed_by_another", "stands_elsewhere"]);

function made(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function row(act) {
  const { device = "", spot = "" } = act.about;
  const item = made("li", { className: "card" });
  item.dataset.kind = act.body.kind;
  item.dataset.state = act.state;
  const refused = act.state === "refused";
  item.append(
    made("div", { className: "row" },
      made("strong", { textContent: say(NAMES[act.body.kind], { device, spot }) }),
      made("span", { className: refused ? "pill bad" : "pill warn", textContent: say(refused ? "refused" : "waits") })),
    made("p", { className: "muted", textContent: say("done_at", { time: clock(act.body.at_ms) }) }),
  );
  if (act.refusal) item.append(made("p", { className: refused ? "note" : "note plain", textContent: act.refusal.sentence }));
  if (!refused) return item;
  const deeds = made("p", { className: "acts" });
  let reason = null;
  if (WITH_REASON.has(act.refusal.code) && act.body.kind === "claim") {
    const id = `reason-${act.order}`;
    reason = made("input", { id, maxLength: 200 });
    item.append(made("p", { className: "field" }, made("label", { htmlFor: id, textContent: say("reason") }), reason));
  }
  const again = made("button", { textContent: say(reason ? "anyway" : "try_again") });
  again.addEventListener("click", () => retry(act.order, reason?.value.trim() ? { reason: reason.value.trim() } : {}));
  const away = made("button", { className: "danger", textContent: say("remove") });
  away.addEventListener("click", () => {
    if (away.dataset.sure) remove(act.order);
    else { away.dataset.sure = "yes"; away.textContent = say("remove_sure"); }
  });
  deeds.append(again, away);
  item.append(deeds);
  return item;
}

let shown = "";
async function draw() {
  const list = await waiting();
  by("sign-in-again").hidden = !status().mustSignIn;
  by("send").disabled = !list.length;
  const now = JSON.stringify(list);
  if (now === shown) return; // a reason that is being typed stays
  shown = now;
  by("waiting").replaceChildren(...list.map(row));
  if (!list.length) by("outbox-say").textContent = say("nothing");
}

export async function start() {
  onChange(draw);
  by("send").addEventListener("click", send);
  await draw();
}
