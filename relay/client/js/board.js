/* The board page: shows a board, and each change as it is committed.
 *
 * It is a client like any other: it gets the board from client.js, and draws it.
 *
 * Rules:
 * - Values of the database are text: they enter the page only as textContent, and its security policy forbids the rest.
 * - Changes wait for the next frame and are drawn together. Only lanes and cards that changed are touched.
 * - Nothing is shown before it is committed. A card that is dropped stays where it is until its message arrives.
 */

import { connect } from "./client.js";

const GLIDE_MS = 340;
const EASING = "cubic-bezier(.22,.8,.24,1)";
const GLOW_MS = 1800;
const MOST_ANIMATED = 120; // more at once than an eye can follow: then they just stand where they belong
const LOG_LINES = 200;
const LOG_LINES_A_FRAME = 40;
const SAMPLES = 32;
const ANNOUNCE_MS = 2000;
const ANSWER_MS = 3000; // for what was written to come back as a message
const LONG_PRESS_MS = 260;
const DRAG_PIXELS = 6;
const EDGE_PIXELS = 40; // so near to an edge, a card that is carried brings the lanes beyond it
const PAN_PIXELS = 8; // a frame
const REFUSED = 4003; // the close code for a token that is not good, or a page of an origin that is not allowed
const LEEWAY_SECONDS = 5; // for which the relay takes a token that is over
const SHOWN = ["title", "priority", "status", "estimatedHours", "id"];
const UNSHOWN = new Set([...SHOWN, "boardId", "lane", "description", "createdAt", "updatedAt"]);
const STATES = { connecting: "Connecting", "catching up": "Catching up", live: "Live", offline: "Offline" };
const THEMES = { auto: ["◐", "as the system has it"], light: ["☀", "light"], dark: ["☾", "dark"] };

const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** Make an element with these properties, `data-` and `aria-` attributes, and content, which is text or elements. */
function make(tag, properties = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...inside);
  return element;
}

/** What this browser stores for the page, if it stores anything. */
const memory = {
  get(name, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(`board.${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(`board.${name}`, JSON.stringify(value));
    } catch {
      // A private window.
    }
  },
};

// Values -----------------------------------------------------------------------------------------------------

function text(value) {
  if (value === null || value === undefined) return "";
  // Large integers are BigInts, which JSON cannot represent.
  const known = (_, each) => (typeof each === "bigint" ? String(each) : each);
  return typeof value === "object" ? JSON.stringify(value, known) : String(value);
}

function laneName(lane) {
  const { laneNames } = board ?? {};
  const named = laneNames && Object.hasOwn(laneNames, lane) ? laneNames[lane] : null;
  if (named) return named;
  const words = lane.replaceAll("_", " ").trim();
  return words ? words[0].toUpperCase() + words.slice(1) : lane;
}

function titleOf(task) {
  const asked = new URLSearchParams(location.search).get("text"); // another column may be the one that people read
  return text(task?.[asked] ?? task?.title ?? task?.name ?? task?.subject) || text(task?.id);
}

const cut = (value, length) => (value.length > length ? `${value.slice(0, length - 1)}…` : value);

function spaced(key) {
  return key.replace(/([a-z\d])([A-Z])/g, "$1 $2").toLowerCase();
}

// Cards ---------------------------------------------------------------------------------------------------------

const cards = new Map(); // by id: {element, fields, lane}
const lanes = new Map(); // by name: {element, list, count, shown}
const visible = new Set(); // elements of cards on the screen
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) visible.add(target);
    else visible.delete(target);
  }
});

function makeCard(task) {
  const element = make("li", { className: "card" });
  const title = make("button", { className: "title", type: "button", tabIndex: -1 });
  const meta = make("div", { className: "meta" });
  element.append(title, meta);
  element.task = task.id;
  watcher.observe(element);
  return { element, title, meta, fields: new Map([["title", title]]), lane: null };
}

/** Update a card, and return the elements of the fields that changed. */
function patch(card, task) {
  const changed = [];
  put(card, "title", titleOf(task), changed);
  put(card, "priority", text(task.priority), changed);
  put(card, "status", text(task.status), changed);
  put(card, "estimatedHours", task.estimatedHours == null ? "" : `${text(task.estimatedHours)} h`, changed);
  let extra = 0;
  for (const key in task) {
    if (UNSHOWN.has(key)) continue;
    const value = task[key];
    const shows = value !== null && typeof value !== "object" && extra < 3;
    put(card, key, shows ? `${spaced(key)} ${cut(text(value), 40)}` : "", changed);
    if (shows) extra += 1;
  }
  put(card, "id", text(task.id), changed);
  return changed;
}

function put(card, name, value, changed) {
  let field = card.fields.get(name);
  if (!field) {
    if (!value) return;
    field = make("span", { className: name === "priority" || name === "status" || name === "id" ? name : "more" });
    card.fields.set(name, field);
    // Fields keep their order, whichever gets a value first.
    const last = name === "id" ? null : card.fields.get("id");
    const place = SHOWN.indexOf(name);
    const next = place < 0 ? last : SHOWN.slice(place + 1).map((key) => card.fields.get(key)).find(Boolean);
    card.meta.insertBefore(field, next ?? last ?? null);
  } else if (field.textContent === value) {
    return;
  }
  field.textContent = value;
  field.hidden = !value;
  if (name === "priority") {
    if (["low", "medium", "high", "urgent"].includes(value)) field.dataset.level = value;
    else delete field.dataset.level;
  }
  changed.push(field);
}

function makeLane(name) {
  const list = make("ol", { className: "cards", role: "list", "aria-label": laneName(name) });
  const count = make("span", { className: "count" });
  const heading = make("h2", { title: name }, laneName(name));
  const head = make("div", { className: "lane-head" }, heading, count);
  const element = make("li", { className: "lane" }, head, list);
  element.dataset.lane = name;
  if (about.writer) {
    const add = make("button", { className: "add", type: "button", "aria-label": `Add a task to ${laneName(name)}` }, "+");
    add.addEventListener("click", () => compose(name));
    head.append(add);
  }
  return { element, list, heading, count, shown: -1 };
}

// What changed, until it is drawn -------------------------------------------------------------------------------

let about = { writer: null, token: false };
let relay = null;
let board = null;
let boardId = "";
let subscriptions = [];
let wholly = true; // whether all is to be compared, not just what is dirty
let firstDraw = true;
let frame = 0;
let received = 0;
const dirty = new Map(); // by id: the lane it was in
let lines = [];
let left = 0; // lines that were left out of this frame
let arrived = null; // when the first of these changes came
let committed = null; // when the first of them was
const own = new Map(); // by id: when a user here let it go, and what flies meanwhile

function take(change) {
  if (!board) return;
  // A hidden page draws nothing, so there is nothing to measure.
  if (!document.hidden) arrived ??= performance.now();
  received += 1;
  lines.push([new Date(), change]);
  if (lines.length > LOG_LINES_A_FRAME) {
    lines.shift();
    left += 1;
  }
  if (change.type === "board.sync") wholly = true;
  else {
    dirty.set(change.id, true);
    // The clocks can be compared only if the database is on this machine, as in the demo.
    const at = about.writer && Date.parse(change.changes?.updatedAt ?? (change.type === "task.created" ? change.task?.updatedAt : ""));
    if (at && !document.hidden) committed = Math.min(committed ?? at, at);
    tally(change);
  }
  schedule();
}

function schedule() {
  if (!frame) frame = requestAnimationFrame(draw);
}

/** Draw all that changed since the last frame. */
function draw() {
  frame = 0;
  if (!board) return;
  const before = measure();
  const gone = [];
  const fresh = [];
  const moved = [];
  const glowing = [];
  const focused = document.activeElement?.closest?.(".card") ?? null;

  const ids = wholly ? new Set([...cards.keys(), ...board.tasks.keys()]) : dirty.keys();
  for (const id of ids) {
    const task = board.tasks.get(id);
    let card = cards.get(id);
    if (!task) {
      if (card) {
        gone.push(card);
        cards.delete(id);
        watcher.unobserve(card.element);
        visible.delete(card.element);
        lanes.get(card.lane).stale = true;
        card.element.remove();
      }
      continue;
    }
    if (!card) {
      card = makeCard(task);
      cards.set(id, card);
      fresh.push(card);
      patch(card, task);
    } else {
      for (const field of patch(card, task)) glowing.push(field);
    }
    const lane = String(task.lane);
    if (card.lane !== lane) {
      if (card.lane !== null) {
        moved.push(card);
        lanes.get(card.lane).stale = true;
        card.element.remove();
      }
      card.lane = lane;
    }
    placeOf(lane).stale = true; // what changed may have changed its place
  }
  arrange();
  if (focused && !focused.isConnected) $("lanes").focus({ preventScroll: true });
  else if (focused && document.activeElement !== focused.firstChild) focused.firstChild.focus();
  keepOneStop();

  const animates = !firstDraw && !calm.matches && moved.length + fresh.length + gone.length <= MOST_ANIMATED;
  if (animates) animate(before, moved, fresh, gone);
  for (const card of [...moved, ...gone]) land(card.element.task);
  if (!firstDraw) for (const field of glowing.slice(0, MOST_ANIMATED)) glow(field);
  writeLog();
  measureLatency();
  if (Object.keys(board.lanes).length) firstDraw = false;
  document.body.classList.toggle("waiting", firstDraw);
  refreshDetails();
  wholly = false;
  dirty.clear();
}

function placeOf(name) {
  let lane = lanes.get(name);
  if (!lane) lanes.set(name, (lane = makeLane(name)));
  return lane;
}

/** Put lanes and cards in the relay's order, moving only those that are out of place. */
function arrange() {
  const names = board.laneOrder;
  for (const [name, lane] of lanes) {
    if (!Object.hasOwn(board.lanes, name)) {
      lane.element.remove();
      lanes.delete(name);
    }
  }
  let next = $("lane-list").firstElementChild;
  for (const name of names) {
    const lane = placeOf(name);
    if (lane.heading.textContent !== laneName(name)) lane.heading.textContent = laneName(name);
    if (lane.element === next) next = next.nextElementSibling;
    else $("lane-list").insertBefore(lane.element, next);
    if (!lane.stale && !wholly) continue;
    let card = lane.list.firstElementChild;
    for (const task of board.lanes[name]) {
      const element = cards.get(task.id)?.element;
      if (!element) continue;
      if (element === card) card = card.nextElementSibling;
      else lane.list.insertBefore(element, card);
    }
    lane.stale = false;
    if (lane.shown !== board.lanes[name].length) {
      lane.shown = board.lanes[name].length;
      lane.count.textContent = lane.shown;
      lane.count.setAttribute("aria-label", `${lane.shown} tasks`);
    }
  }
  $("total").textContent = board.tasks.size.toLocaleString("en");
}

// Animations ----------------------------------------------------------------------------------------------------

function measure() {
  const places = new Map();
  if (firstDraw || calm.matches || visible.size > MOST_ANIMATED * 2) return places;
  for (const element of visible) places.set(element, element.getBoundingClientRect());
  for (const id of dirty.keys()) {
    const card = cards.get(id);
    const flying = own.get(id)?.ghost;
    if (card) places.set(card.element, (flying ?? card.element).getBoundingClientRect());
  }
  return places;
}

function animate(before, moved, fresh, gone) {
  const flown = new Set();
  for (const { element } of gone) {
    const from = before.get(element);
    if (!from) continue;
    const ghost = stage(element, from);
    ghost.classList.add("gone");
    run(ghost, [{ opacity: 1 }, { opacity: 0, transform: "scale(.96)" }], 220).finished.finally(() => ghost.remove());
  }
  for (const { element, lane } of moved) {
    flown.add(element);
    const from = before.get(element);
    if (from) fly(element, from, lanes.get(lane).list.getBoundingClientRect());
  }
  for (const { element } of fresh) {
    flown.add(element);
    run(element, [{ opacity: 0, transform: "translateY(-6px) scale(.98)" }, { opacity: 1, transform: "none" }], GLIDE_MS);
  }
  for (const [element, from] of before) {
    if (flown.has(element) || !element.isConnected) continue;
    const to = element.getBoundingClientRect();
    const [x, y] = [from.left - to.left, from.top - to.top];
    if (x || y) run(element, [{ transform: `translate(${x}px, ${y}px)` }, { transform: "none" }], GLIDE_MS);
  }
}

/** Animate a card from lane to lane, above them all, because lanes clip their contents. */
function fly(element, from, lane) {
  const place = element.getBoundingClientRect();
  const hidden = place.top > lane.bottom - 20 || place.bottom < lane.top;
  const top = Math.min(Math.max(place.top, lane.top - place.height), lane.bottom - 20);
  const ghost = stage(element, new DOMRect(place.left, top, place.width, place.height));
  const steps = [
    { transform: `translate(${from.left - place.left}px, ${from.top - top}px)`, opacity: 1 },
    { transform: "none", opacity: hidden ? 0 : 1 },
  ];
  const duration = GLIDE_MS + Math.min(220, Math.hypot(from.left - place.left, from.top - top) / 5);
  run(element, [{ opacity: 0 }, { opacity: 0 }], duration);
  run(ghost, steps, duration).finished.finally(() => ghost.remove());
}

/** Put a copy of a card above the board. */
function stage(element, place) {
  const ghost = element.cloneNode(true);
  ghost.classList.remove("lifted");
  ghost.inert = true;
  Object.assign(ghost.style, { left: `${place.left}px`, top: `${place.top}px`, width: `${place.width}px`, height: `${place.height}px` });
  $("stage").append(ghost);
  return ghost;
}

function run(element, steps, duration) {
  return element.animate(steps, { duration, easing: EASING });
}

function glow(element) {
  const shade = { backgroundColor: "var(--glow)", boxShadow: "0 0 0 3px var(--glow)", color: "var(--ink)" };
  const none = { backgroundColor: "transparent", boxShadow: "0 0 0 3px transparent" };
  element.animate([shade, { ...shade, offset: 0.25 }, none], { duration: GLOW_MS, easing: "ease-out" });
}

// Latency -------------------------------------------------------------------------------------------------------

const samples = [];
let sampled = "";

/** Measure the time once this frame has been painted. */
function measureLatency() {
  const [came, since] = [arrived, committed];
  arrived = committed = null;
  const clicks = [...dirty.keys()].map((id) => own.get(id)?.since).filter(Boolean);
  if (came === null || firstDraw || wholly || board.state !== "live" || document.hidden) return;
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => {
    port1.close();
    const [now, clock] = [performance.now(), Date.now()];
    for (const click of clicks) sample("your click → screen", now - click);
    if (clicks.length) return;
    if (since !== null) sample("commit → screen", Math.max(0, clock - since));
    else if (!about.writer) sample("arrival → screen", now - came);
  };
  port2.postMessage(null);
}

const MEANINGS = {
  "your click → screen": "From your drop, key or click, through HTTP, Postgres, journal and WebSocket, to the frame that shows it.",
  "commit → screen": "From the transaction's time, updated_at, to the frame that shows it. Postgres and this browser share a clock.",
  "arrival → screen": "From the message's arrival in this page to the frame that shows it. The way before that has two clocks.",
};

function sample(what, milliseconds) {
  sampled = what;
  samples.push(milliseconds);
  if (samples.length > SAMPLES) samples.shift();
  $("latency").hidden = false;
  $("latency").title = MEANINGS[what];
  $("latency-what").textContent = what;
  $("latency-value").textContent = `${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`;
  const most = Math.max(40, ...samples);
  const bar = 64 / SAMPLES;
  const path = samples.map((each, at) => {
    const height = Math.max(1.5, (each / most) * 18);
    return `M${(SAMPLES - samples.length + at) * bar} 18v${-height}h${bar - 0.6}v${height}z`;
  });
  $("spark").firstElementChild.setAttribute("d", path.join(""));
}

// Changes in words -----------------------------------------------------------------------------------------

function sentence(change) {
  const name = cut(titleOf(change.task ?? change.before ?? change), 80);
  switch (change.type) {
    case "task.created":
      return `${name} · in ${laneName(String(change.task?.lane))}`;
    case "task.moved":
      return `${name} · ${laneName(String(change.fromLane))} → ${laneName(String(change.toLane))}`;
    case "task.updated": {
      const shown = Object.entries(change.changes ?? {}).filter(([key]) => key !== "updatedAt" && key !== "lane");
      const values = shown.map(([key, value]) => `${spaced(key)}: ${cut(text(value) || "none", 60)}`);
      return `${name} · ${values.join(", ") || Object.keys(change.changes ?? {}).map(spaced).join(", ")}`;
    }
    case "task.deleted":
      return name;
    default:
      return change.reason ? `the whole board: ${change.reason}` : "the whole board";
  }
}

function writeLog() {
  const entries = lines;
  const missed = left;
  lines = [];
  left = 0;
  if (!entries.length || $("log").hidden) {
    kept.push(...entries);
    kept.splice(0, Math.max(0, kept.length - LOG_LINES));
    $("log-count").textContent = received.toLocaleString("en");
    return;
  }
  showLines(entries, missed);
}

const kept = []; // lines that came while the log was closed

function showLines(entries, missed) {
  const list = $("log-list");
  const nodes = entries.map(([time, change]) =>
    make(
      "li",
      {},
      make(
        "div",
        {},
        make("span", { className: "kind", "data-kind": change.type }, change.type),
        make("time", {}, time.toLocaleTimeString("en-GB")),
      ),
      make("p", {}, sentence(change)),
    ),
  );
  if (missed) nodes.unshift(make("li", {}, make("p", {}, `and ${missed.toLocaleString("en")} more`)));
  list.prepend(...nodes.reverse());
  while (list.childElementCount > LOG_LINES) list.lastElementChild.remove();
  $("log-count").textContent = received.toLocaleString("en");
}

function showLog(shown) {
  $("log").hidden = !shown;
  $("log-switch").setAttribute("aria-expanded", shown);
  if (shown && kept.length) showLines(kept.splice(0), 0);
}

let heard = []; // the first few of what is to be said, and how many there are in all
let unsaid = 0;
let speaking = 0;

const VERBS = { "task.created": "added to", "task.moved": "moved to", "task.updated": "changed in", "task.deleted": "deleted from" };

function spoken({ type, task, before, toLane }) {
  const lane = laneName(String(toLane ?? (task ?? before)?.lane));
  return `${cut(titleOf(task ?? before), 60)} ${VERBS[type] ?? "changed in"} ${lane}`;
}

/** Announce the user's own changes at once, and others' in summaries, or a busy board would never be silent. */
function tally(change) {
  const follows = Object.keys(change.changes ?? {}).every((key) => key === "updatedAt" || key === "lane");
  if (change.type === "task.updated" && follows) return; // the move was reported already
  if (own.has(change.id)) {
    $("said").textContent = spoken(change);
    return;
  }
  unsaid += 1;
  if (unsaid <= 3) heard.push(spoken(change));
  speaking ||= setTimeout(() => {
    speaking = 0;
    $("said").textContent = unsaid <= 3 ? heard.join(". ") : `${unsaid.toLocaleString("en")} changes`;
    [heard, unsaid] = [[], 0];
  }, ANNOUNCE_MS);
}

let toasting = 0;

function toast(words) {
  $("toast").textContent = words;
  $("toast").hidden = false;
  clearTimeout(toasting);
  toasting = setTimeout(() => ($("toast").hidden = true), 5000);
}

function notice(words) {
  $("notice").textContent = words;
  $("notice").hidden = !words;
}

// The keyboard --------------------------------------------------------------------------------------------------

let stop = null; // the title that Tab leads to

function keepOneStop(title = stop) {
  if (!title?.isConnected) title = $("lane-list").querySelector(".title");
  if (stop && stop !== title) stop.tabIndex = -1;
  stop = title;
  if (stop) stop.tabIndex = 0;
}

document.addEventListener("focusin", ({ target }) => {
  if (target.matches(".title")) keepOneStop(target);
});

function cardAt(lane, place) {
  const all = lane?.querySelector(".cards").children;
  return all?.[Math.min(place, all.length - 1)] ?? null;
}

/** Focus a card at about the same height in the next lane that has one. */
function sideways(card, step) {
  const place = [...card.parentElement.children].indexOf(card);
  const sibling = step > 0 ? "nextElementSibling" : "previousElementSibling";
  for (let lane = card.closest(".lane")[sibling]; lane; lane = lane[sibling]) {
    const found = cardAt(lane, place);
    if (found) return found;
  }
  return null;
}

$("lanes").addEventListener("keydown", (event) => {
  const card = event.target.closest(".card");
  if (!card || event.ctrlKey || event.altKey || event.metaKey) return;
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  let next = null;
  if (step && event.shiftKey) {
    const lane = step > 0 ? card.closest(".lane").nextElementSibling : card.closest(".lane").previousElementSibling;
    if (about.writer && lane) move(card.task, lane.dataset.lane, event.timeStamp);
  } else if (step) next = sideways(card, step);
  else if (event.key === "ArrowDown") next = card.nextElementSibling;
  else if (event.key === "ArrowUp") next = card.previousElementSibling;
  else if (event.key === "Home") next = card.parentElement.firstElementChild;
  else if (event.key === "End") next = card.parentElement.lastElementChild;
  else if (event.key === "Delete" && about.writer) remove(card.task, event.timeStamp);
  else if (event.key === "n" && about.writer) compose(card.closest(".lane").dataset.lane);
  else return;
  event.preventDefault();
  if (next) {
    next.firstChild.focus();
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
});

$("lanes").addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (card && !justDropped) showDetails(card.task);
});

// Writing, in the demo ------------------------------------------------------------------------------------------

/** Send a request to the demo's writer. Its effect is seen when the change arrives. */
async function write(method, id, body) {
  const path = id === undefined ? about.writer : `${about.writer}/${encodeURIComponent(id)}`;
  try {
    const answer = await fetch(path, {
      method,
      headers: { "Content-Type": "application/json" },
      body: body && JSON.stringify(body),
    });
    if (answer.ok) return method === "POST" ? (await answer.json()).id : true;
    toast((await answer.json()).problem);
  } catch {
    toast("The demo does not answer: has it been stopped?");
  }
  return false;
}

/** Remember that a change of a task was made on this page, or forget it if its message does not arrive. */
function expect(id, since, ghost) {
  land(id);
  own.set(id, { since, ghost, timer: setTimeout(() => land(id), ANSWER_MS) });
}

function land(id) {
  const waiting = own.get(id);
  if (!waiting) return;
  clearTimeout(waiting.timer);
  waiting.ghost?.remove();
  cards.get(id)?.element.classList.remove("lifted");
  queueMicrotask(() => own.get(id) === waiting && own.delete(id)); // its latency is yet to be measured
}

async function move(id, lane, since, ghost) {
  expect(id, since, ghost);
  if (!(await write("PATCH", id, { lane }))) land(id);
}

async function remove(id, since) {
  expect(id, since);
  if (!(await write("DELETE", id))) land(id);
}

function compose(name) {
  const lane = lanes.get(name);
  if (!lane) return;
  const input = make("input", { type: "text", maxLength: 200, placeholder: "What is to be done?", "aria-label": `New task in ${laneName(name)}` });
  const form = make("form", { className: "composer" }, input);
  lane.list.before(form);
  input.focus();
  // Losing the focus closes it, and Escape moves the focus.
  input.addEventListener("blur", () => form.remove(), { once: true });
  input.addEventListener("keydown", (event) => event.key === "Escape" && lane.element.querySelector(".add").focus());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const title = input.value.trim();
    if (!title) return;
    input.value = "";
    if (!(await write("POST", undefined, { title, lane: name, boardId }))) input.value = title;
  });
}

// Dragging: one way for mouse, pen and finger ---------------------------------------------------------------------

let drag = null;
let justDropped = false;

$("lanes").addEventListener("pointerdown", (event) => {
  const card = event.target.closest(".card");
  if (!about.writer || !card || event.button || drag) return;
  const [x, y] = [event.clientX, event.clientY];
  drag = { card, from: { x, y }, at: { x, y }, pointer: event.pointerId, ghost: null, lane: null, moved: false, panning: 0 };
  // A finger that moves at once scrolls; one that rests picks up the card.
  if (event.pointerType === "touch") drag.resting = setTimeout(lift, LONG_PRESS_MS);
});

function lift() {
  const { card } = drag;
  drag.ghost = stage(card, card.getBoundingClientRect());
  card.classList.add("lifted");
  document.body.classList.add("dragging");
  carry();
}

document.addEventListener("pointermove", (event) => {
  if (!drag || event.pointerId !== drag.pointer) return;
  drag.at = { x: event.clientX, y: event.clientY };
  const far = Math.hypot(drag.at.x - drag.from.x, drag.at.y - drag.from.y) >= DRAG_PIXELS;
  if (far && !drag.ghost) {
    if (drag.resting) return endDrag();
    lift();
  }
  drag.moved ||= far;
  if (drag.ghost) carry();
});

/** Move the card to the pointer, and highlight the lane into which it would be dropped. */
function carry() {
  const { ghost, from, at } = drag;
  ghost.style.transform = `translate(${at.x - from.x}px, ${at.y - from.y}px) rotate(${calm.matches ? 0 : 1.5}deg)`;
  const lane = document.elementFromPoint(at.x, at.y)?.closest(".lane") ?? null;
  if (lane !== drag.lane) {
    drag.lane?.classList.remove("target");
    drag.lane = lane;
    if (lane !== drag.card.closest(".lane")) lane?.classList.add("target");
  }
  drag.panning ||= requestAnimationFrame(pan);
}

/** Scroll while the pointer is at an edge: a phone shows one lane at a time. */
function pan() {
  if (!drag) return;
  drag.panning = 0;
  const edge = !drag.moved ? 0 : drag.at.x < EDGE_PIXELS ? -1 : drag.at.x > innerWidth - EDGE_PIXELS ? 1 : 0;
  const before = $("lane-list").scrollLeft;
  if (edge) $("lane-list").scrollLeft += edge * PAN_PIXELS;
  if ($("lane-list").scrollLeft !== before) carry();
}

document.addEventListener("pointerup", (event) => {
  if (!drag || event.pointerId !== drag.pointer) return;
  const { card, ghost, lane, moved } = drag;
  const moves = moved && card.isConnected && lane && lane !== card.closest(".lane");
  endDrag(moves);
  if (!moved) return; // a finger that rested and went is a tap
  justDropped = true; // the click that follows opens nothing
  setTimeout(() => (justDropped = false));
  if (moves) move(card.task, lane.dataset.lane, event.timeStamp, ghost);
});

function endDrag(keepsGhost) {
  clearTimeout(drag.resting);
  drag.lane?.classList.remove("target");
  document.body.classList.remove("dragging");
  if (!keepsGhost) {
    drag.ghost?.remove();
    drag.card.classList.remove("lifted");
  }
  drag = null;
}

document.addEventListener("pointercancel", (event) => drag?.pointer === event.pointerId && endDrag());
document.addEventListener("keydown", (event) => event.key === "Escape" && drag && endDrag());
// While a finger drags a card, it must neither scroll nor open a menu.
document.addEventListener("touchmove", (event) => drag?.ghost && event.preventDefault(), { passive: false });
document.addEventListener("contextmenu", (event) => drag?.ghost && event.preventDefault());

// One task ------------------------------------------------------------------------------------------------------

let opened; // the id of the task that the dialog shows

function showDetails(id) {
  const task = board?.tasks.get(id);
  if (!task) return;
  opened = id;
  $("details").replaceChildren(about.writer ? editor(task) : facts(task));
  if (!$("details").open) $("details").showModal();
}

function facts(task) {
  const list = make("dl");
  for (const [key, value] of Object.entries(task)) {
    if (key !== "title") list.append(make("dt", {}, spaced(key)), make("dd", {}, text(value) || "–"));
  }
  const close = make("button", { className: "button", type: "button" }, "Close");
  close.addEventListener("click", () => $("details").close());
  return make("div", {}, make("h2", { id: "details-title" }, titleOf(task)), list, make("menu", {}, close));
}

function choice(values, chosen) {
  const select = make("select");
  for (const value of new Set([...values, chosen])) select.append(make("option", { value, selected: value === chosen }, laneName(value)));
  return select;
}

function editor(task) {
  const inputs = {
    title: make("input", { value: text(task.title), required: true, maxLength: 200 }),
    description: make("textarea", { value: text(task.description), maxLength: 10000 }),
    lane: choice(board.laneOrder, String(task.lane)),
    priority: choice(["low", "medium", "high"], text(task.priority)),
    status: make("input", { value: text(task.status), maxLength: 200 }),
    estimatedHours: make("input", { type: "number", min: 0, step: "any", value: text(task.estimatedHours) }),
  };
  const was = Object.fromEntries(Object.entries(inputs).map(([key, input]) => [key, input.value]));
  const field = (key, name) => make("label", {}, name, inputs[key]);
  const button = (label, kind, type = "button") => make("button", { className: `button ${kind}`, type }, label);
  const [del, cancel, save] = [button("Delete", "danger"), button("Cancel", ""), button("Save", "primary", "submit")];
  const form = make(
    "form",
    {},
    make("h2", { id: "details-title" }, "Task ", make("span", { className: "small" }, text(task.id))),
    field("title", "Title"),
    field("description", "Description"),
    make("div", { className: "pair" }, field("lane", "Lane"), field("priority", "Priority")),
    make("div", { className: "pair" }, field("status", "Status"), field("estimatedHours", "Hours")),
    make("menu", {}, del, cancel, save),
  );
  cancel.addEventListener("click", () => $("details").close());
  del.addEventListener("click", ({ timeStamp }) => {
    $("details").close();
    remove(task.id, timeStamp);
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const changed = Object.entries(inputs).filter(([key, input]) => input.value !== was[key]);
    const body = Object.fromEntries(
      changed.map(([key, { value }]) => {
        if (key === "estimatedHours") return [key, value === "" ? null : value];
        return [key, value === "" && key !== "title" ? null : value];
      }),
    );
    $("details").close();
    if (!changed.length) return;
    expect(task.id, event.timeStamp);
    if (!(await write("PATCH", task.id, body))) land(task.id);
  });
  return form;
}

/** Update the open task if it is only shown. A form in which it is edited is left alone. */
function refreshDetails() {
  if (!$("details").open || !(wholly || dirty.has(opened))) return;
  const task = board.tasks.get(opened);
  if (!task) {
    $("details").close();
    toast("The task that was open here was deleted.");
  } else if (!about.writer) $("details").replaceChildren(facts(task));
}

// Tokens --------------------------------------------------------------------------------------------------------

const TOKEN = "board.token";
const SWITCHED_OFF = "The relay's WebSocket endpoint is switched off: see WS_ENABLED.";
const LIMITED =
  "it has had too many connections from here in the last minute (see WS_RATE_LIMIT_PER_CLIENT), or has no room " +
  "(see WS_MAX_CONNECTIONS)";
const TURNED_AWAY = "The relay refused the one you gave, or this page's origin (see WS_ORIGINS).";
let refusal = ""; // why the token of the last attempt was refused
let attempts = 0; // connections tried since the last one that served, or since a token was given
let wasThere = true; // whether the relay answered over HTTP before the last attempt
let asking = null;

function storedToken() {
  const token = sessionStorage.getItem(TOKEN);
  return token && !expired(token) ? token : null;
}

/** Whether a JSON Web Token has expired, by its own claims. */
function expired(token) {
  try {
    const claims = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
    return (claims.exp + LEEWAY_SECONDS) * 1000 <= Date.now();
  } catch {
    return false;
  }
}

/** Return a token for the client's next attempt, and ask the user for one if none may be valid. */
async function token() {
  attempts += 1;
  if (attempts > 1 && !refusal) await readPage();
  if (!about.token) return undefined;
  const had = sessionStorage.getItem(TOKEN);
  const good = storedToken() ?? (await ask(refusal || (had ? "The one you gave has expired." : "")));
  refusal = "";
  attempts = Math.max(attempts, 1);
  return good;
}

/** Find out why an attempt failed, which browsers hide: is the relay unreachable, or did it refuse this page?
 *
 * It refused if it answered over HTTP both before and after the attempt.
 */
async function readPage() {
  const before = wasThere;
  try {
    const answer = await fetch("/page.json", { cache: "no-store" });
    wasThere = answer.ok;
    if (wasThere) about = await answer.json();
  } catch {
    wasThere = false;
  }
  if (!before || !wasThere) return;
  if (!about.websocket.running) notice(SWITCHED_OFF);
  else notice(`The relay answers, but lets no WebSocket of this page in: ${LIMITED}. It is tried again.`);
}

/** Ask the user for a token. */
function ask(why) {
  asking ??= new Promise((resolve) => {
    $("asks-why").textContent = why;
    $("asks-why").hidden = !why;
    $("token").value = "";
    const form = $("asks-form");
    form.addEventListener(
      "submit",
      (event) => {
        event.preventDefault();
        sessionStorage.setItem(TOKEN, $("token").value.trim());
        asking = null;
        $("asks").close();
        [attempts, wasThere] = [0, true];
        resolve(storedToken());
      },
      { once: true },
    );
    $("asks").showModal();
  });
  return asking;
}

// Escape must not close the dialog: without a token the page stays empty.
$("asks").addEventListener("close", () => asking && $("asks").showModal());

// Connecting ----------------------------------------------------------------------------------------------------

function start() {
  const scheme = about.websocket.tls || location.protocol === "https:" ? "wss" : "ws";
  relay = connect(`${scheme}://${location.hostname}:${about.websocket.port}`, { token });
  relay.on("error", (error) => {
    if (error.code === "unreachable" && error.closeCode === REFUSED) {
      refusal = TURNED_AWAY; // the client asks for another before its next attempt
      sessionStorage.removeItem(TOKEN);
    }
    if (error.boardId === undefined && error.code !== "unreachable" && error.code !== "closed") toast(error.message);
  });
}

function follow(name) {
  for (const end of subscriptions) end();
  board?.unsubscribe();
  clear();
  boardId = name;
  board = relay.subscribe(name);
  subscriptions = [board.on("change", take), board.on("state", showState), board.on("error", fail)];
  $("board").value = name;
  document.title = `${name} · Board`;
  $("second").href = `/?board=${encodeURIComponent(name)}`;
  const known = [name, ...memory.get("boards", []).filter((each) => each !== name)].slice(0, 12);
  memory.set("boards", known);
  $("boards").replaceChildren(...known.map((value) => make("option", { value })));
  showState(board.state);
  schedule();
}

function clear() {
  for (const { element } of cards.values()) watcher.unobserve(element);
  for (const each of [cards, lanes, visible, dirty]) each.clear();
  $("lane-list").replaceChildren();
  wholly = firstDraw = true;
  [lines, left, arrived, committed] = [[], 0, null, null];
  samples.length = 0;
  $("latency").hidden = true;
  $("total").textContent = "–";
  notice("");
  if ($("details").open) $("details").close();
}

function showState(state) {
  $("state").dataset.state = state;
  $("state-text").textContent = STATES[state] ?? state;
  document.body.classList.toggle("stale", state === "offline" || (state === "connecting" && !firstDraw));
  if (state === "live" || state === "catching up") {
    [attempts, wasThere] = [0, false];
    notice("");
  }
  if (state === "live") schedule();
}

/** Show an error of the relay. If the token is invalid or has expired, ask for another. */
function fail(error) {
  if (error.closeCode === REFUSED && !about.token) {
    notice(`The relay refused this page: ${location.origin} is not among its WS_ORIGINS.`);
  } else if (error.closeCode === REFUSED) {
    replaceToken(error.message.startsWith("the relay refused") ? TURNED_AWAY : "The one you gave is not good any more.");
  } else if (error.code === "closed" && error.closeCode === undefined && about.token) {
    replaceToken(error.message);
  } else if (["unusable_board", "invalid_board_id"].includes(error.code)) {
    notice(error.message);
  } else if (error.code === "not_allowed") {
    $("state-text").textContent = "No access";
    notice(`You may not read the board ${cut(boardId, 60)}, or there is none of that name.`);
  } else toast(error.message);
}

function replaceToken(why) {
  sessionStorage.removeItem(TOKEN);
  ask(why)
    .then((given) => relay.authenticate(given))
    .catch(({ message }) => replaceToken(message));
}

// The page ------------------------------------------------------------------------------------------------------

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const [sign, meaning] = THEMES[theme];
  $("theme").textContent = sign;
  $("theme").title = `Colours: ${meaning}`;
  $("theme").setAttribute("aria-label", `Colours: ${meaning}. Change`);
}

const named = () => new URLSearchParams(location.search).get("board") || "default";

$("theme").addEventListener("click", () => {
  const all = Object.keys(THEMES);
  const theme = all[(all.indexOf(memory.get("theme", "auto")) + 1) % all.length];
  memory.set("theme", theme);
  setTheme(theme);
});
$("log-switch").addEventListener("click", () => {
  showLog($("log").hidden);
  memory.set("log", !$("log").hidden);
});
$("chooser").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("board").value.trim();
  if (!name || name === boardId) return;
  history.pushState(null, "", `?board=${encodeURIComponent(name)}`);
  follow(name);
});
$("board").addEventListener("change", () => $("chooser").requestSubmit());
addEventListener("popstate", () => follow(named()));
document.addEventListener("visibilitychange", () => document.hidden && (arrived = committed = null));

function showKeys() {
  const keys = about.writer
    ? [["↑↓←→", "walk"], ["Enter", "edit"], ["Shift ←→", "move"], ["N", "add"], ["Del", "delete"]]
    : [["↑↓←→", "walk"], ["Enter", "details"]];
  for (const [key, meaning] of keys) $("keys").append(make("kbd", {}, key), ` ${meaning}   `);
  $("version").textContent = `pg-change-relay ${about.version}`;
}

async function open() {
  setTheme(memory.get("theme", "auto"));
  showLog(memory.get("log", innerWidth >= 1500));
  document.body.classList.add("waiting");
  for (;;) {
    try {
      about = await (await fetch("/page.json", { cache: "no-store" })).json();
      break;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  document.body.classList.toggle("writes", Boolean(about.writer));
  $("second").hidden = !about.writer;
  showKeys();
  if (!about.websocket.running) notice(SWITCHED_OFF);
  start();
  follow(named());
}

open();
