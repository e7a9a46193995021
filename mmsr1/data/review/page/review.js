// The review page. Texts of a row only ever become text nodes; a decision counts once the server said it is on disk.
"use strict";

const at = (id) => document.getElementById(id);
const NAMES = {open: "Open", accepted: "Accepted", rejected: "Rejected", flagged: "Flagged"};
const FILTERS = ["", "open", "accepted", "rejected", "flagged"];
const RETRY_MS = 1500;

let row = null; // as the server sent it
let overview = null;
let filter = "";
let busy = false; // while a decision is on its way or a row is fetched: keys for what is not seen yet do nothing
let unsaved = false;

class Refused extends Error {
  constructor(status, body) {
    super(body.error || `the server says ${status}`);
    this.status = status;
    this.body = body;
  }
}

async function ask(path, body) {
  const sent = body === undefined ? {} : {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
  };
  const response = await fetch(path, sent);
  const found = await response.json();
  if (!response.ok) throw new Refused(response.status, found);
  return found;
}

function say(text, wrong = false) {
  at("message").textContent = text;
  at("message").classList.toggle("wrong", wrong);
}

// ---- what is shown

function made(kind, text, name) {
  const element = document.createElement(kind);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
}

const current = (key) => row.edited[key] ?? row[key];

function showOverview() {
  at("file").textContent = overview.file;
  at("reviewer").textContent = `reviewed by ${overview.reviewer}`;
  document.title = `${overview.total - overview.counts.open} of ${overview.total} - ${overview.file}`;
  for (const part of at("progress").children) {
    part.style.flexGrow = overview.counts[part.dataset.state];
    part.hidden = !overview.counts[part.dataset.state];
  }
  const told = Object.entries(overview.counts).map(([state, count]) => `${count} ${state}`).join(", ");
  at("progress").setAttribute("aria-label", told);
  for (const button of at("filters").children) {
    const state = button.dataset.filter;
    button.querySelector("b").textContent = state ? overview.counts[state] : overview.total;
    button.setAttribute("aria-pressed", String(state === filter));
  }
  enableActions();
}

// While the form is open its own buttons count: the others would drop what was typed.
function enableActions() {
  const typing = !at("form").hidden;
  for (const button of at("actions").children) {
    button.disabled = typing || (button.dataset.do === "undo" && overview.undo === null);
  }
}

function showRow() {
  at("row").hidden = false;
  at("nothing").hidden = true;
  at("place").textContent = `row ${row.position + 1} of ${overview.total}`;
  at("state").textContent = NAMES[row.state] + (row.outdated ? ": the row has changed since you decided, decide again" : "");
  at("state").dataset.state = row.state;
  at("question").textContent = row.question;
  at("answer").textContent = current("answer");
  const aliases = current("aliases");
  at("aliases").replaceChildren(...aliases.map((alias) => made("li", alias, "data")));
  at("aliases-row").hidden = !aliases.length;
  at("note").textContent = row.note;
  at("note-row").hidden = !row.note;
  at("was").textContent = changes(row.edited);
  showPictures();
  at("others").replaceChildren(...row.others.map(otherReviewer));
  at("evidence").replaceChildren(...row.evidence.map(piece));
  at("evidence-part").hidden = !row.evidence.length;
  const facts = [...Object.entries(row.facts), ["Id", row.id]].filter(([, value]) => value);
  at("facts").replaceChildren(...facts.map(([name, value]) => {
    const fact = made("div");
    fact.append(made("dt", name), made("dd", value, "data"));
    return fact;
  }));
  history.replaceState(null, "", `#row=${row.position + 1}${filter ? `&state=${filter}` : ""}`);
}

function changes(edited) {
  const told = [];
  if (edited.answer !== null) told.push(`answer was: ${row.answer}`);
  if (edited.aliases !== null) told.push(`aliases were: ${row.aliases.join(", ") || "none"}`);
  return told.join("; ");
}

const address = (of, number) => `/api/rows/${of.position}/pictures/${number}?${of.pictures[number]}`;

function showPictures() {
  const shown = row.pictures.map((_, number) => {
    const image = made("img");
    const whole = made("button");
    whole.type = "button";
    image.alt = `picture ${number + 1} of ${row.pictures.length}`;
    image.onerror = () => whole.replaceWith(made("p", "This picture cannot be shown.", "none"));
    image.src = address(row, number);
    whole.append(image);
    whole.addEventListener("click", zoom);
    return whole;
  });
  at("pictures").replaceChildren(...(shown.length ? shown : [made("p", "No picture", "none")]));
  at("pictures").className = shown.length > 1 ? "pictures several" : "pictures";
}

function zoom() {
  at("pictures").classList.toggle("full");
}

function otherReviewer(other) {
  const box = made("div", undefined, "other");
  const answer = other.edited.answer ?? row.answer;
  const aliases = other.edited.aliases ?? row.aliases;
  box.dataset.state = other.state;
  box.append(made("p", `${other.reviewer}: ${NAMES[other.state].toLowerCase()}`, "data"));
  if (other.edited.answer !== null || other.edited.aliases !== null) {
    box.append(made("p", `answer ${answer}${aliases.length ? `; also right: ${aliases.join(", ")}` : ""}`, "data quiet"));
  }
  if (other.note) box.append(made("p", other.note, "data quiet"));
  return box;
}

// The one parser whose opinion of an address counts is the browser's.
function link(url) {
  let parsed;
  try {
    parsed = new URL(url);
  } catch {
    return null;
  }
  if (parsed.protocol !== "http:" && parsed.protocol !== "https:") return null;
  const anchor = made("a");
  anchor.href = parsed.href;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer";
  return anchor;
}

function piece(evidence) {
  const box = made("div", undefined, "piece");
  const anchor = link(evidence.url);
  const title = anchor || made("span");
  title.textContent = evidence.title || (anchor ? anchor.hostname : "untitled");
  title.classList.add("title", "data");
  box.append(title);
  if (evidence.url) box.append(made("span", anchor ? anchor.href : evidence.url, "url data"));
  if (evidence.text) {
    const text = made("div", undefined, "text data");
    text.append(...marked(evidence.text));
    box.append(text);
  }
  return box;
}

// The text with every place marked where it says the answer.
function marked(text) {
  const sought = [current("answer"), ...current("aliases")].filter((one) => one.trim().length > 1);
  if (!sought.length) return [text];
  sought.sort((a, b) => b.length - a.length);
  const pattern = sought.map((one) => one.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|");
  const edge = "[\\p{L}\\p{N}]";
  const parts = text.split(new RegExp(`(?<!${edge})(${pattern})(?!${edge})`, "iu"));
  return parts.map((part, number) => (number % 2 ? made("mark", part) : part));
}

function nothingLeft() {
  const left = overview.counts.open;
  const done = left ? `${left} rows are open` : "every row is decided";
  return filter ? `No row is ${NAMES[filter].toLowerCase()}; ${done}.` : "There are no rows.";
}

// ---- going from row to row

async function go(position) {
  if (position === null || position === undefined) return false;
  row = await ask(`/api/rows/${position}`);
  closeForm();
  showRow();
  window.scrollTo(0, 0);
  ahead();
  return true;
}

// The browser keeps the next picture, so that it is there at once.
async function ahead() {
  try {
    const {position} = await ask(next(1));
    if (position === null || position === row.position) return;
    const coming = await ask(`/api/rows/${position}`);
    coming.pictures.forEach((_, number) => { new Image().src = address(coming, number); });
  } catch { /* only a head start */ }
}

const next = (by, from = row.position) => `/api/next?at=${from}&by=${by}${filter ? `&state=${filter}` : ""}`;

async function step(by) {
  const {position} = await ask(next(by));
  if (position === null) say(filter ? nothingLeft() : by > 0 ? "This is the last row." : "This is the first row.");
  else if (position === row.position) say(`This is the only row that is ${NAMES[filter].toLowerCase()}.`);
  else if (await go(position)) say("");
}

async function show(state) {
  filter = state;
  overview = await ask("/api/overview");
  showOverview();
  if (!filter) return go(row ? row.position : overview.total ? 0 : null);
  const from = row ? row.position - 1 : -1;
  const {position} = await ask(next(1, from));
  if (position === null) return say(nothingLeft());
  say("");
  return go(position);
}

async function goTo() {
  const wanted = Number.parseInt(prompt(`Row, 1 to ${overview.total}`) || "", 10);
  if (wanted >= 1 && wanted <= overview.total) await go(wanted - 1);
}

// ---- decisions

async function decide(state, edited = row.edited, note = row.note, stay = false) {
  const body = {state, answer: edited.answer, aliases: edited.aliases, note, content: row.content, seen: row.seen};
  const found = await saved(`/api/rows/${row.position}`, body);
  if (!found) return undefined;
  row = found.row;
  overview = found.overview;
  showOverview();
  if (stay) {
    closeForm();
    showRow();
    return say(`Saved: row ${row.position + 1}.`);
  }
  const told = NAMES[state];
  const done = row.position;
  const {position} = await ask(next(1));
  if (position === null || position === done) {
    closeForm();
    showRow();
    return say(`${told}: row ${done + 1}. ${overview.counts.open || filter ? nothingLeft() : "Every row is decided."}`);
  }
  await go(position);
  return say(`${told}: row ${done + 1}.`);
}

async function undo() {
  if (overview.undo === null) return say("There is nothing to undo.");
  const found = await saved("/api/undo", {number: overview.undo});
  if (!found) return undefined;
  overview = found.overview;
  row = found.row;
  closeForm();
  showOverview();
  showRow();
  return say(`Undone: row ${row.position + 1}.`);
}

// Until the server has it on disk, or refuses it; null where it is not saved. A server that was started again may have
// it already: then the row is as it was to become.
async function saved(path, body) {
  unsaved = true;
  try {
    for (let again = false; ; again = true) {
      try {
        return await ask(path, body);
      } catch (error) {
        if (!(error instanceof Refused)) {
          say("Not saved yet: the server does not answer. Trying again; leave this tab open.", true);
          await new Promise((resolve) => { setTimeout(resolve, RETRY_MS); });
        } else if (error.status === 409) {
          overview = error.body.overview;
          if (again && error.body.row && isAs(error.body.row, body)) return error.body;
          row = error.body.row ?? await ask(`/api/rows/${row.position}`);
          closeForm();
          showOverview();
          showRow();
          say(`Not saved: ${error.message}. This is how it is now.`, true);
          return null;
        } else {
          say(`Not saved: ${error.message}`, true);
          return null;
        }
      }
    }
  } finally {
    unsaved = false;
  }
}

function isAs(found, body) {
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  return found.content === body.content && found.state === body.state && found.note === body.note.trim()
    && same(found.edited, {answer: body.answer, aliases: body.aliases});
}

// ---- the form

function openForm(first = "edit-answer") {
  at("edit-answer").value = current("answer");
  at("edit-aliases").value = current("aliases").join("\n");
  at("edit-aliases").rows = Math.min(9, Math.max(3, current("aliases").length + 1));
  at("edit-note").value = row.note;
  at("shown").hidden = true;
  at("form").hidden = false;
  enableActions();
  at(first).focus();
  say("");
}

function closeForm() {
  at("shown").hidden = false;
  at("form").hidden = true;
  enableActions();
  if (document.activeElement) document.activeElement.blur();
}

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

function formEdits() {
  const answer = at("edit-answer").value.trim();
  const aliases = lines(at("edit-aliases").value);
  const same = JSON.stringify(aliases) === JSON.stringify(lines(row.aliases.join("\n")));
  return {answer: answer === row.answer ? null : answer, aliases: same ? null : aliases};
}

function dirty() {
  if (at("form").hidden) return false;
  return at("edit-answer").value !== current("answer") || at("edit-note").value !== row.note
    || at("edit-aliases").value !== current("aliases").join("\n");
}

// ---- keys and buttons

const DO = {
  accepted: () => decide("accepted"), rejected: () => decide("rejected"), flagged: () => decide("flagged"),
  edit: () => openForm(), note: () => openForm("edit-note"), undo, forward: () => step(1), back: () => step(-1),
  help: () => at("help").showModal(), zoom, goTo,
  open: () => at("evidence").querySelector("a")?.click(),
};
const KEYS = {
  a: "accepted", r: "rejected", f: "flagged", e: "edit", n: "note", u: "undo", j: "forward", k: "back",
  ArrowRight: "forward", ArrowLeft: "back", "?": "help", z: "zoom", g: "goTo", o: "open",
};

// One thing at a time; what is asked for meanwhile is for a row that is not seen yet.
async function act(work) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    const told = error instanceof Refused ? error.message : "the server does not answer; is it still running?";
    say(`Not done: ${told}`, true);
  } finally {
    busy = false;
    document.body.removeAttribute("aria-busy");
  }
}

const saveForm = (state, stay) => act(() => decide(state, formEdits(), at("edit-note").value, stay));
const saveOnly = () => saveForm(row.state, true);

document.addEventListener("keydown", (event) => {
  if (at("help").open || event.isComposing) return;
  if (!at("form").hidden) {
    if (event.key === "Escape") closeForm();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) saveForm("accepted");
    else if (event.key === "Enter" && event.target === at("edit-note")) saveOnly();
    else return;
    event.preventDefault();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !row) return;
  const name = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
  if (name === undefined && FILTERS[event.key] === undefined) return;
  event.preventDefault();
  act(name ? DO[name] : () => show(FILTERS[event.key]));
});
at("actions").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || !row) return;
  button.blur();
  act(DO[button.dataset.do]);
});
at("filters").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  button.blur();
  if (at("form").hidden) act(() => show(button.dataset.filter));
});
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  saveForm("accepted");
});
at("save-only").addEventListener("click", saveOnly);
at("cancel").addEventListener("click", closeForm);
window.addEventListener("beforeunload", (event) => {
  if (unsaved || dirty()) event.preventDefault();
});
// Another tab may have decided meanwhile.
window.addEventListener("focus", () => {
  if (!row || unsaved || !at("form").hidden) return;
  act(async () => {
    overview = await ask("/api/overview");
    const now = await ask(`/api/rows/${row.position}`);
    const changed = now.seen !== row.seen;
    row = now;
    showOverview();
    if (changed) showRow();
  });
});

act(async () => {
  const asked = new URLSearchParams(location.hash.slice(1));
  overview = await ask("/api/overview");
  filter = FILTERS.includes(asked.get("state")) ? asked.get("state") : "";
  showOverview();
  const wanted = Number.parseInt(asked.get("row") || "", 10);
  if (wanted >= 1 && wanted <= overview.total) return go(wanted - 1);
  if (!overview.total) {
    at("nothing").textContent = nothingLeft();
    at("nothing").hidden = false;
    return undefined;
  }
  // Where the review was left: the first row that is open.
  const {position} = await ask("/api/next?at=-1&by=1&state=open");
  return go(position ?? 0);
});
