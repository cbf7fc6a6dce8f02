// The page of a device login: asks what waits with a code, lets a person decide, tells what became of it.
// Whatever a device or a server wrote reaches the page by textContent alone. The key lives in one variable.

const LETTERS = 8;
const ALPHABET = /^[BCDFGHJKLMNPQRSTVWXZ]{8}$/;
const MAY = { read: "read", write: "read and send", admin: "administer the team" };

const by = (id) => document.getElementById(id);
const fields = { code: by("code"), key: by("key"), team: by("team") };

let key = "";
let waiting = null;
let ticking = 0;
let busy = false;

function show(section, step) {
  for (const one of ["fallback", "ask", "decide", "done"]) by(one).hidden = one !== section;
  [...by("way").children].forEach((item, place) => {
    item.classList.toggle("past", place < step);
    if (place === step) item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
  });
}

// Beside a field, or for the whole of a form.
function complain(text, where, alert = by(`${where}-alert`)) {
  alert.textContent = text;
  const field = fields[where];
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  field.focus();
}

function clearComplaints() {
  for (const alert of document.querySelectorAll(".alert")) alert.textContent = "";
  for (const field of Object.values(fields)) field.removeAttribute("aria-invalid");
}

const lettersOf = (text) => text.toUpperCase().replace(/[^A-Z0-9]/g, "").slice(0, LETTERS);
const grouped = (letters) => (letters.length > LETTERS / 2 ? `${letters.slice(0, 4)}-${letters.slice(4)}` : letters);
const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`).replace(/^./u, (first) => first.toUpperCase());

// Keeps the caret after the letter that precedes it.
function formatCode() {
  const field = fields.code;
  const before = lettersOf(field.value.slice(0, field.selectionStart)).length;
  field.value = grouped(lettersOf(field.value));
  const caret = before + (before > LETTERS / 2 ? 1 : 0);
  field.setSelectionRange(caret, caret);
}

async function ask(what, body) {
  try {
    const response = await fetch(`admin/v1/login/${what}`, {
      method: "POST",
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
      body: JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal: AbortSignal.timeout(45_000),
    });
    const wait = Number(response.headers.get("retry-after")) || 1;
    return { status: response.status, body: await response.json(), wait };
  } catch {
    return { status: 0, body: {}, wait: 1 };
  }
}

// What to say, and which field it is about.
function explain({ status, body, wait }) {
  switch (status) {
    case 0:
      return ["The post office did not answer. Try again."];
    case 401:
      return ["This post office does not know the key, or it was revoked or has expired.", "key"];
    case 403:
      return [sentence(String(body.error)), "key"];
    case 404:
      return ["No device waits with this code. A code ends with its first use, or after ten minutes.", "code"];
    case 409:
      return ["This code was decided already. If that was not you, begin the login anew on the device.", "code"];
    case 429:
      return [`Too many tries. Wait ${wait === 1 ? "a second" : `${wait} seconds`}, then go on.`];
    case 503:
      return ["The post office cannot reach a majority of its nodes right now. Nothing was changed: try again in a moment."];
    case 504:
      return ["Nobody knows whether that was carried out. Look the code up again to see."];
    default:
      return [sentence(String(body.error ?? "Something went wrong"))];
  }
}

// One thing at a time; the buttons keep the focus.
async function during(section, work) {
  if (busy) return;
  busy = true;
  by(section).setAttribute("aria-busy", "true");
  clearComplaints();
  try {
    await work();
  } finally {
    busy = false;
    by(section).removeAttribute("aria-busy");
  }
}

async function lookUp() {
  const letters = lettersOf(fields.code.value);
  if (!ALPHABET.test(letters)) {
    return complain("A code has eight letters, like BCDF-GHJK: no vowels, no digits.", "code");
  }
  key = fields.key.value.trim();
  if (!key) return complain("Paste a key here.", "key");
  // What is no header cannot be a key.
  if (!/^[\x21-\x7e]{1,256}$/.test(key)) return complain("This is not a key: a key is one line without spaces.", "key");
  const answer = await ask("lookup", { user_code: letters });
  if (answer.status !== 200) {
    const [text, where = "ask"] = explain(answer);
    return complain(text, where);
  }
  fields.key.value = "";
  waiting = answer.body;
  askToDecide();
}

function askToDecide() {
  const client = by("client");
  client.classList.toggle("nameless", !waiting.client);
  client.firstElementChild.textContent = waiting.client || "nothing: it gave no name";
  by("shown-code").textContent = waiting.user_code;
  const asked = new Date(waiting.requested_at);
  by("asked").dateTime = waiting.requested_at;
  by("asked").textContent = asked.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  offerTeams();
  by("decide-form").reset();
  decidable(waiting.teams.length > 0);
  if (waiting.teams.length === 0) {
    complain("There is no team yet to let it into. Make one: agentpost team create NAME", "decide");
    by("deny").disabled = false;
  }
  countDown(Date.now() + waiting.expires_in * 1000);
  show("decide", 1);
  by("decide-title").focus();
}

function offerTeams() {
  const [only, ...more] = waiting.teams;
  by("team-one").hidden = !only || more.length > 0;
  by("team-many").hidden = more.length === 0;
  by("team-name").textContent = only?.name ?? "";
  fields.team.replaceChildren(fields.team.options[0], ...waiting.teams.map(({ id, name }) => {
    const option = document.createElement("option");
    option.value = id;
    option.textContent = name;
    return option;
  }));
}

function decidable(yes) {
  by("approve").disabled = !yes;
  by("deny").disabled = !yes;
}

function countDown(end) {
  clearInterval(ticking);
  const tick = () => {
    const seconds = Math.max(0, Math.ceil((end - Date.now()) / 1000));
    by("left").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
    if (seconds > 0) return;
    clearInterval(ticking);
    decidable(false);
    complain("The code has ended. Begin the login anew on the device.", "decide");
  };
  ticking = setInterval(tick, 500);
  tick();
}

async function approve() {
  const several = waiting.teams.length > 1;
  const team = waiting.teams.find(({ id }) => !several || id === fields.team.value);
  if (!team) return complain("Choose the team that the device shall belong to.", "team");
  const may = new FormData(by("decide-form")).get("may");
  const answer = await ask("approve", { user_code: waiting.user_code, team: team.id, permissions: [may] });
  if (answer.status !== 200) return cannotDecide(answer);
  finish("in", "It is in", `The device fetches its key by itself, within seconds. In the team “${answer.body.team.name}” it may ${MAY[may]}. You can close this page.`);
}

async function deny() {
  const answer = await ask("deny", { user_code: waiting.user_code });
  if (answer.status !== 200) return cannotDecide(answer);
  finish("away", "Turned away", "The device got no key, and its code has ended. You can close this page.");
}

// Some answers leave nothing to decide here.
function cannotDecide(answer) {
  complain(explain(answer)[0], "decide");
  if ([401, 403, 404, 409, 504].includes(answer.status)) {
    decidable(false);
    by("back").focus();
  }
}

function finish(how, title, text) {
  forget();
  by("picture-in").toggleAttribute("hidden", how !== "in");
  by("picture-away").toggleAttribute("hidden", how !== "away");
  by("done-title").textContent = title;
  by("done-text").textContent = text;
  // It went no further.
  by("way").hidden = how === "away";
  show("done", 2);
  by("done-title").focus();
}

function forget() {
  clearInterval(ticking);
  key = "";
  waiting = null;
  fields.key.value = "";
}

function begin(code) {
  forget();
  clearComplaints();
  fields.code.value = grouped(lettersOf(code));
  by("way").hidden = false;
  show("ask", 0);
  (fields.code.value ? fields.key : fields.code).focus();
}

by("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  during("ask", lookUp);
});
by("decide-form").addEventListener("submit", (event) => {
  event.preventDefault();
  during("decide", approve);
});
by("deny").addEventListener("click", () => during("decide", deny));
by("back").addEventListener("click", () => busy || begin(""));
by("again").addEventListener("click", () => begin(""));
fields.code.addEventListener("input", formatCode);
// A page that comes back from the browser's memory starts anew.
window.addEventListener("pageshow", (event) => event.persisted && begin(""));
by("plain").hidden = window.isSecureContext;
begin(new URLSearchParams(location.search).get("code") ?? "");
