/* The kiosk's page.
 *
 * A visit: attract, questions, thanks, and back after 4 s, or after 30 s without a touch.
 * - A question takes one answer: the screen is locked at the first touch, so a double tap is one
 *   press. A new screen takes none for its first 300 ms, since nobody has read it by then: the
 *   second tap of a double tap would answer what came up beneath the finger.
 * - A press is written down (localStorage) before anything else, and sent until the agent has said
 *   that it is on its disk. The visitor goes on when it has, or after 600 ms without.
 * - Presses bear the agent's time of arrival. So an agent that is away for longer than a minute
 *   gets no more of them: the page says that it is back in a moment.
 * - Another questionnaire is taken up between two visits, never within one.
 * - Another screen (an update, or the way back from one) is taken up the same way, by loading anew.
 *   The agent is told which one was drawn.
 * - Where the agent holds codes, the thanks offer to go on on one's own phone. A code is asked for
 *   when somebody touches that, is shown for a minute, and is used up by it.
 */

import { format } from "/message.js";
import { face, name as faceName } from "/faces.js";

const IDLE_MS = 30000;
const THANKS_MS = 4000;
const OFFER_MS = 10000;
const CODE_MS = 60000;
const UNREAD_MS = 300;
const PATIENCE_MS = 600;
const AWAY_MS = 60000;
const RETRY_MS = 500;
const NAMES = { sv: "Svenska", da: "Dansk", en: "English" };
const FACES = { smiley3: 3, smiley4: 4, smiley5: 5 };
const SCALES = { nps: [0, 10], csat: [1, 5], ces: [1, 7], statement: [1, 5] };

const screen = document.querySelector("#screen");
const languages = document.querySelector("#languages");
const staffButton = document.querySelector("#staff");
const badge = document.querySelector("#badge");

let words = null;
let state = null; // what the agent last said
let shown = null; // what this visit shows: hash, questionnaire, site
let language = "sv";
let visit = null; // token, and answers by question
let phase = "wait";
let at = 0;
let drawn = 0;
let locked = false;
let testing = false;
let heardAt = Date.now();
let timer = 0;
let pin = "";
let code = null; // what the agent gave for this visit
let build = null; // which screen this page is of, as the agent named it at first

/* -- kept ------------------------------------------------------------------------------------- */

const random = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem("presses"));
    if (kept && typeof kept.client === "string" && Array.isArray(kept.queue)) return kept;
  } catch {
    // what can't be read is begun anew, under another name
  }
  return { client: random(), next: 1, queue: [] };
}
let kept = load();
const save = () => localStorage.setItem("presses", JSON.stringify(kept));

let sending = null;
function send() {
  sending ??= deliver().finally(() => {
    sending = null;
  });
  return sending;
}

async function deliver() {
  while (kept.queue.length) {
    const press = kept.queue[0];
    try {
      const answered = await fetch("/press", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ ...press, client: kept.client }),
        signal: AbortSignal.timeout(5000),
      });
      if (answered.status >= 500) throw new Error("not yet");
      heardAt = Date.now();
      kept.queue.shift(); // journalled, or nothing that could ever be
      save();
    } catch {
      await pause(RETRY_MS);
    }
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/* -- words ------------------------------------------------------------------------------------ */

const say = (key, values = {}) => format(words[language][key], values, language);
const told = (texts) => format(texts[language], { site: shown.site }, language);

function element(kind, properties = {}, ...children) {
  const made = document.createElement(kind);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/* -- drawing ---------------------------------------------------------------------------------- */

function draw(className, ...children) {
  delete document.body.dataset.ready;
  document.documentElement.lang = language;
  document.title = say("title");
  screen.className = className;
  screen.replaceChildren(...children);
  document.body.dataset.phase = phase;
  badge.hidden = !testing;
  badge.textContent = say("testing");
  staffButton.hidden = !state?.staff || phase === "pin" || phase === "staff";
  staffButton.textContent = say("staff");
  languages.replaceChildren(
    ...shown.questionnaire.languages.map((each) =>
      element("button", { type: "button", lang: each, textContent: NAMES[each], "aria-pressed": String(each === language), onclick: () => speak(each) }),
    ),
  );
  languages.hidden = languages.childElementCount < 2;
  locked = false;
  drawn = performance.now();
  const mine = drawn;
  setTimeout(() => {
    if (drawn === mine) document.body.dataset.ready = phase;
  }, UNREAD_MS);
  if (phase !== "attract") screen.querySelector("h1")?.focus();
}

const heading = (text) => element("h1", { tabIndex: -1, textContent: text });

function speak(wanted) {
  language = wanted;
  touched();
  redraw();
}

function redraw() {
  if (phase === "attract" || phase === "question") showQuestion();
  else if (phase === "thanks") showThanks();
  else if (phase === "code") showCode();
  else if (phase === "away") showAway();
  else if (phase === "pin") showPin("");
  else if (phase === "staff") restart();
}

function restart() {
  clearTimeout(timer);
  testing = false;
  begin();
}

function begin() {
  if (another()) {
    location.reload();
    return;
  }
  shown = { hash: state.hash, questionnaire: state.questionnaire, site: state.site };
  language = shown.questionnaire.languages[0];
  code = null;
  visit = { token: `${Date.now().toString(36)}-${random()}`, answers: new Map() };
  at = 0;
  phase = "attract";
  if (shown.questionnaire.welcome) showWelcome();
  else showQuestion();
}

function showWelcome() {
  const start = element("button", { type: "button", className: "main answer", textContent: say("start"), onclick: () => accept(start, null) });
  draw("attract", heading(told(shown.questionnaire.welcome)), start);
}

function showQuestion() {
  if (phase === "attract" && shown.questionnaire.welcome) {
    showWelcome();
    return;
  }
  const question = shown.questionnaire.questions[at];
  const answers = buttons(question);
  const parts = [heading(told(question.text)), answers];
  const scale = SCALES[question.kind];
  if (scale) {
    parts.push(element("div", { className: "ends" }, element("span", { textContent: end(question, "low") }), element("span", { textContent: end(question, "high") })));
  }
  if (at > 0) parts.push(element("button", { type: "button", className: "quiet", id: "skip", textContent: say("skip"), onclick: skip }));
  draw(phase === "attract" ? "attract" : "question", ...parts);
}

const end = (question, which) => (question[which] ? told(question[which]) : say(`${question.kind}_${which}`));

function buttons(question) {
  const box = element("div", { className: "answers", role: "group" });
  box.setAttribute("aria-label", told(question.text));
  const add = (answer, label, ...children) => {
    const button = element("button", { type: "button", className: "answer" }, ...children);
    button.dataset.answer = answer;
    if (label) button.setAttribute("aria-label", label);
    button.onclick = () => accept(button, answer);
    box.append(button);
  };
  const count = FACES[question.kind];
  if (count) {
    box.classList.add("faces");
    for (let answer = 0; answer < count; answer += 1) {
      add(answer, null, face(answer, count), element("span", { textContent: say(faceName(answer, count)) }));
    }
  } else if (question.kind === "choice") {
    box.classList.add("list");
    question.options.forEach((option, answer) => add(answer, null, told(option)));
  } else {
    box.classList.add("scale");
    const [low, high] = SCALES[question.kind];
    for (let answer = low; answer <= high; answer += 1) {
      const which = answer === low ? "low" : answer === high ? "high" : null;
      add(answer, which ? `${answer}: ${end(question, which)}` : null, String(answer));
    }
  }
  return box;
}

function showThanks() {
  phase = "thanks";
  const text = shown.questionnaire.thanks ? told(shown.questionnaire.thanks) : say("thanks");
  const parts = [heading(text)];
  const offers = state.more && !testing;
  if (offers) {
    const more = element("button", { type: "button", className: "main", id: "more", textContent: say("more"), onclick: () => askCode() });
    parts.push(more, element("p", { textContent: say("more_how") }));
  }
  draw("thanks", ...parts, done());
  stay(offers ? OFFER_MS : THANKS_MS);
}

const done = () => element("button", { type: "button", className: "quiet", id: "done", textContent: say("done"), onclick: () => restart() });

function stay(ms) {
  clearTimeout(timer);
  timer = setTimeout(restart, ms);
}

async function askCode() {
  if (locked || unread()) return;
  locked = true;
  stay(IDLE_MS);
  const mine = drawn;
  try {
    const answered = await fetch("/code", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: "{}",
      signal: AbortSignal.timeout(5000),
    });
    code = answered.ok ? await answered.json() : null;
  } catch {
    code = null;
  }
  if (drawn !== mine) return; // the visit has ended meanwhile
  if (code) showCode();
  else restart();
}

function showCode() {
  phase = "code";
  const address = code.address.replace(/^https?:\/\//, "");
  draw(
    "code",
    heading(say("code_title")),
    picture(code.rows),
    element("p", { textContent: say("code_type", { address }) }),
    element("p", { className: "typed", textContent: code.typed }),
    element("p", { className: "soft", textContent: say("code_once") }),
    done(),
  );
  stay(CODE_MS);
}

/* A QR code of rows of 0 and 1, dark on white, with the margin of four squares that it needs. */
function picture(rows) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  const dark = document.createElementNS(space, "path");
  const runs = rows.flatMap((row, y) => [...row.matchAll(/1+/g)].map((run) => `M${run.index + 4} ${y + 4}h${run[0].length}v1h-${run[0].length}z`));
  dark.setAttribute("d", runs.join(""));
  drawing.setAttribute("viewBox", `0 0 ${rows.length + 8} ${rows.length + 8}`);
  drawing.setAttribute("class", "qr");
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", say("code_picture"));
  drawing.append(dark);
  return drawing;
}

function showAway() {
  phase = "away";
  draw("away", heading(say("away")));
}

/* -- a press ---------------------------------------------------------------------------------- */

const unread = () => performance.now() - drawn < UNREAD_MS;

async function accept(button, answer, by = "touch") {
  if (locked || unread()) return;
  locked = true;
  touched();
  button.setAttribute("aria-pressed", "true");
  if (answer !== null) {
    const question = at;
    visit.answers.set(question, answer);
    if (!testing) {
      kept.queue.push({ id: kept.next, hash: shown.hash, question, answer, visit: visit.token, by });
      kept.next += 1;
      save();
      const mine = drawn;
      await Promise.race([send(), pause(PATIENCE_MS)]);
      if (drawn !== mine) return; // the visit has ended meanwhile
    }
    follow();
  } else {
    phase = "question";
    showQuestion();
  }
}

function skip() {
  if (locked || unread()) return;
  touched();
  follow();
}

function follow() {
  const { questions } = shown.questionnaire;
  do at += 1;
  while (at < questions.length && !isFor(questions[at]));
  if (at >= questions.length) {
    showThanks();
    return;
  }
  phase = "question";
  showQuestion();
}

function isFor(question) {
  if (!question.after) return true;
  return question.after.answers.includes(visit.answers.get(question.after.question));
}

/* Nobody touches it for 30 s: whoever comes next begins anew. */
function touched() {
  clearTimeout(timer);
  timer = setTimeout(restart, IDLE_MS);
}

function pressPosition(position, by) {
  const found = screen.querySelectorAll("button.answer")[position - 1];
  if (!found) return;
  accept(found, found.dataset.answer === undefined ? null : Number(found.dataset.answer), by);
}

document.addEventListener("pointerdown", () => {
  if (!["attract", "thanks", "code", "away", "wait"].includes(phase)) touched();
});
document.addEventListener("contextmenu", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (phase === "pin" || phase === "staff" || event.repeat) return;
  if (/^[0-9]$/.test(event.key)) {
    const kind = shown?.questionnaire.questions[at]?.kind;
    if (kind === "nps") pressPosition(Number(event.key) + 1, "button");
    else if (event.key !== "0") pressPosition(Number(event.key), "button");
  } else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    const all = [...screen.querySelectorAll("button.answer")];
    if (!all.length) return;
    const step = event.key === "ArrowRight" ? 1 : -1;
    const now = all.indexOf(document.activeElement);
    all[now < 0 ? 0 : (now + step + all.length) % all.length].focus();
    event.preventDefault();
  }
});

/* -- staff ------------------------------------------------------------------------------------ */

staffButton.onclick = () => {
  touched();
  showPin("");
};

function showPin(wrong) {
  phase = "pin";
  pin = "";
  const field = element("input", { id: "pin", type: "password", inputMode: "none", autocomplete: "off", maxLength: 12 });
  field.setAttribute("aria-label", say("pin"));
  const pad = element("div", { className: "pad" });
  for (const key of ["1", "2", "3", "4", "5", "6", "7", "8", "9", "⌫", "0", "✓"]) {
    const button = element("button", { type: "button", textContent: key });
    if (key === "⌫") button.setAttribute("aria-label", say("erase"));
    if (key === "✓") button.setAttribute("aria-label", say("open"));
    button.onclick = () => {
      touched();
      if (key === "✓") askStaff(field.value);
      else if (key === "⌫") field.value = field.value.slice(0, -1);
      else field.value = (field.value + key).slice(0, 12);
    };
    pad.append(button);
  }
  field.onkeydown = (event) => {
    touched();
    if (event.key === "Enter") askStaff(field.value);
  };
  const close = element("button", { type: "button", className: "quiet", textContent: say("close"), onclick: restart });
  draw("staff", heading(say("pin")), field, element("p", { className: "wrong", role: "alert", textContent: wrong }), pad, close);
}

async function askStaff(given) {
  pin = given;
  let answered;
  try {
    answered = await fetch("/staff", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ pin }),
      signal: AbortSignal.timeout(5000),
    });
  } catch {
    showPin(say("no_agent"));
    return;
  }
  const said = await answered.json();
  if (answered.status === 429) showPin(say("pin_wait", { n: said.wait_s }));
  else if (!answered.ok) showPin(say("pin_wrong"));
  else showStaff(said);
}

function showStaff(said) {
  phase = "staff";
  const yes = (good) => say(good ? "good" : "bad");
  const rows = [
    [say("device"), said.device],
    [say("online"), say(said.online ? "yes" : "no")],
    [say("waiting"), say("frames", { n: said.waiting })],
    [say("here"), say("presses", { n: kept.queue.length })],
    [say("disk"), yes(said.disk)],
    [say("clock"), say(`clock_${said.clock}`)],
    [say("questionnaire"), said.questionnaire],
    [say("plan"), yes(said.plan)],
    [say("version"), said.version],
  ];
  const list = element("dl");
  for (const [name, value] of rows) list.append(element("dt", { textContent: name }), element("dd", { textContent: value }));
  const test = element("button", {
    type: "button",
    className: "main",
    id: "test",
    textContent: say("test"),
    onclick: () => {
      clearTimeout(timer);
      begin();
      testing = true;
      redraw();
      touched();
    },
  });
  draw("staff", heading(say("staff")), list, test, element("button", { type: "button", className: "quiet", id: "close", textContent: say("close"), onclick: restart }));
}

/* -- the agent -------------------------------------------------------------------------------- */

async function listen() {
  let number = 0;
  let button = 0;
  for (;;) {
    try {
      const asked = `number=${number}&button=${button}&drawn=${drawn ? build : ""}`;
      const answered = await fetch(`/state?${asked}`, { signal: AbortSignal.timeout(40000) });
      if (!answered.ok) throw new Error("not now");
      const said = await answered.json();
      heardAt = Date.now();
      const first = state === null;
      build ??= said.build ?? "";
      const restarted = said.number < number || said.button < button;
      state = said;
      number = said.number;
      if (!first && !restarted) for (const position of said.pressed) pressPosition(position, "button");
      button = said.button;
      if (said.identify > 0) identify(said.identify);
      if (phase === "wait" || phase === "away" || (phase === "attract" && !locked && changed())) restart();
    } catch {
      if (state !== null && phase === "attract" && Date.now() - heardAt > AWAY_MS) showAway();
      await pause(RETRY_MS);
    }
  }
}

let framed = 0;

/** Frame the page for whoever looks for this device; it goes on as it is. */
function identify(ms) {
  document.body.dataset.identify = "yes";
  clearTimeout(framed);
  framed = setTimeout(() => delete document.body.dataset.identify, ms);
}

const another = () => (state.build ?? "") !== build;
const changed = () => shown.hash !== state.hash || shown.site !== state.site || another();

async function main() {
  while (words === null) {
    try {
      words = await (await fetch("/words.json")).json();
    } catch {
      await pause(RETRY_MS);
    }
  }
  save();
  send();
  await listen();
}

// one page at a time: two would number their presses alike
navigator.locks.request("page", main);
