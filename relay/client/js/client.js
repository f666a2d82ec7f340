/**
 * Follows boards of a pg-change-relay, and keeps each as it is in the database.
 *
 *     import { connect } from "./client.js";
 *
 *     const board = connect("ws://localhost:4002").subscribe("default");
 *     board.on("change", (change) => console.log(change.type, board.lanes));
 *
 * One module without dependencies, for browsers and for Node 18 or later; its types are in client.d.ts. Where there
 * is no global WebSocket (Node before 22), pass one, such as that of the package ws: `connect(url, { WebSocket })`.
 *
 * From the core outwards: a `Replica` is the tasks of one board; a `Following` knows what of it is still to come; a
 * `Board` is one subscription to it, of which there may be several; a `Link` is one connection, from the attempt to
 * its end; a `Relay` follows boards over many links.
 *
 * Rules:
 * - A batch is applied whole or not at all, so a board is at any time what the table was at some moment.
 * - A message that does not fit is never guessed at: the board is requested again. If that goes on, it is an error.
 * - Tasks are never changed in place: a change makes a new object, so an object that you hold stays as it is.
 * - Once a link has ended, its events are ignored.
 * - Nobody can end the subscription of somebody else.
 * - Each feature of the environment is detected by itself: none is inferred from another.
 */

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 30_000;
const RESTART_PAUSE = 2_000; // after 1012: the relay is stopping, perhaps to start again
const CALM = 60_000; // so long after a misfit, the next one is the first again
const MOST_MISFITS = 5; // in a row; then the board is an error
const OPEN_TIMEOUT = 10_000;
const TOKEN_TIMEOUT = 30_000; // a browser may leave a fetch pending forever after the machine slept
const PING_INTERVAL = 30_000;
const PROBE_TIMEOUT = 5_000;
const MOST_PATIENCE = 31; // pings; sixteen minutes
const SILENT = "nothing was heard";
const HOPELESS = new Set([1002, 1007, 1008, 1009, 4003]); // close codes that waiting does not help
const EXPIRED = 4001;
const REFUSED = 4003;
const TOO_MANY = 1008; // unless other messages than too many were bad
const RESTARTING = 1012;
const BROKEN = 1006;
const SUBPROTOCOL = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const ADDRESS = /^((?:ws|http)s?:\/\/)(?:[^/?#]*@)?([^/?#@]+)([^?#]*)/i;
const SELECTABLE = { lanes: ["string"], columns: ["string"], tasks: ["string", "number", "bigint"] };
const TRANSACTION = /^[1-9]\d{0,19}$/;
const STATUS = /\bresponse\b\D*([1-5]\d\d)\b/i; // in the messages of the package ws, and of React Native
const NO_STATUS = /^$|non-101/; // those of browsers, and of Node's own
const PASSING = new Set([408, 425, 429]); // statuses below 500 after which to try again
const LIMITED = {
  429: "more connections in a minute than the relay allows: see WS_RATE_LIMIT_PER_CLIENT and WS_RATE_LIMIT_TOTAL",
  503: "the relay has no room: see WS_MAX_CONNECTIONS",
};
const UNKNOWN =
  "no reason is given to programs here; if the relay is up, it refused, and its log says why: perhaps more connections " +
  "in a minute than it allows (HTTP 429: see WS_RATE_LIMIT_PER_CLIENT), or it has no room (HTTP 503: see " +
  "WS_MAX_CONNECTIONS)";

const REAL_CLOCK = {
  setTimeout: (callback, milliseconds) => setTimeout(callback, milliseconds),
  clearTimeout: (timer) => clearTimeout(timer),
  now: () => Date.now(),
  random: () => Math.random(),
};

/**
 * Returns a client, which connects when the first board is subscribed to, and again whenever the connection is lost.
 * Throws TypeError if the address or the token is invalid.
 */
export function connect(url, options) {
  return new Relay(url, options);
}

/** What went wrong: `code` for programs, `message` for people, `boardId` if it is about one board. */
export class RelayError extends Error {
  constructor(code, message, { boardId, closeCode } = {}) {
    super(message);
    this.name = "RelayError";
    this.code = code;
    if (boardId !== undefined) this.boardId = boardId;
    if (closeCode !== undefined) this.closeCode = closeCode;
  }
}

// What is read --------------------------------------------------------------------------------------------------

const LONG_INTEGER = /^-?\d{16,}$/;
const MARK = `integer-${Math.random()}:`; // nobody who writes a task can know it

/** Parses JSON. An integer that a number cannot hold exactly becomes a BigInt. */
function parse(text) {
  if (!/\d{16}/.test(text)) return JSON.parse(text);
  const marked = outsideStrings(text, (part) =>
    part.replace(/-?\d[\d.eE+-]*/g, (number) =>
      LONG_INTEGER.test(number) && !Number.isSafeInteger(Number(number)) ? `"${MARK}${number}"` : number,
    ),
  );
  return JSON.parse(marked, (_, value) =>
    typeof value === "string" && value.startsWith(MARK) ? BigInt(value.slice(MARK.length)) : value,
  );
}

/** Replaces what stands between the strings of a JSON text. */
function outsideStrings(text, replace) {
  const parts = [];
  for (let at = 0; at < text.length; ) {
    const quote = text.indexOf('"', at);
    if (quote < 0) {
      parts.push(replace(text.slice(at)));
      break;
    }
    parts.push(replace(text.slice(at, quote)));
    at = stringEnd(text, quote);
    parts.push(text.slice(quote, at));
  }
  return parts.join("");
}

function stringEnd(text, quote) {
  for (let end = text.indexOf('"', quote + 1); end >= 0; end = text.indexOf('"', end + 1)) {
    let slashes = 0;
    while (text[end - 1 - slashes] === "\\") slashes += 1;
    if (slashes % 2 === 0) return end + 1;
  }
  return text.length;
}

// What is held --------------------------------------------------------------------------------------------------

/** A message cannot apply to the board that we hold, so it is not the board that the relay thinks we hold. */
class Misfit extends Error {}

function fits(condition, found = "a message of another shape than expected") {
  if (!condition) throw new Misfit(found);
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isOrder = (by) => isObject(by) && typeof by.key === "string" && (by.values === undefined || Array.isArray(by.values));
const isId = (value) => ["string", "number", "bigint"].includes(typeof value);

const SHARED = " (ids must differ across all watched tables: see relay check)";

/** An id as text: "1" and 1 differ. */
const quoted = (id) => (typeof id === "string" ? JSON.stringify(id) : String(id));

/** The key of a lane: a string as it is, null or a number as JSON. */
const laneName = (lane) => (typeof lane === "string" ? lane : String(lane ?? null));

// Their order --------------------------------------------------------------------------------------------------

/** Booleans sort before numbers, numbers before strings, and all of them before what cannot be compared. */
const RANKS = { boolean: 0, number: 1, bigint: 1, string: 2 };

/** Compares strings by code points. `<` compares code units, and so sorts characters above U+FFFF before some below. */
function compareTexts(one, other) {
  const length = Math.min(one.length, other.length);
  for (let at = 0; at < length; at += 1) {
    if (one.charCodeAt(at) === other.charCodeAt(at)) continue;
    const [left, right] = [one, other].map((text) => {
      const unit = text.charCodeAt(at);
      return unit >= 0xd800 && unit <= 0xdfff ? unit + 0x10000 : unit;
    });
    return left - right;
  }
  return one.length - other.length;
}

function compareValues(one, other) {
  const [left, right] = [RANKS[typeof one] ?? 3, RANKS[typeof other] ?? 3];
  if (left !== right) return left - right;
  if (left === 3) return 0;
  if (left === 2) return compareTexts(one, other);
  if (one < other) return -1;
  return one > other ? 1 : 0;
}

/** Returns a function that compares tasks by the `orderBy` of a board, and then by their ids. */
function comparison(orderBy) {
  const keys = orderBy.map(({ key, descending, nullsFirst, values }) => {
    const places = values && new Map(values.map((value, place) => [value, place]));
    return {
      value: ({ [key]: value }) => (places && typeof value === "string" ? (places.get(value) ?? places.size) : value),
      direction: descending ? -1 : 1,
      nulls: nullsFirst ? -1 : 1,
    };
  });
  return (one, other) => {
    for (const { value, direction, nulls } of keys) {
      const [left, right] = [value(one) ?? null, value(other) ?? null];
      if (left === null || right === null) {
        if (left !== right) return left === null ? nulls : -nulls;
        continue;
      }
      const found = compareValues(left, right);
      if (found !== 0) return found * direction;
    }
    return compareValues(one.id, other.id);
  };
}

/** The tasks of one board, by id and by lane. Does no I/O. A method that throws Misfit has changed nothing. */
class Replica {
  tasks = new Map();
  laneNames = null; // lane -> its name, where lanes have names
  #laneOrder = null; // where lanes have an order that an object cannot have: its numbers come first, in theirs
  #compare = null; // where the board has an order; else tasks stay as they come
  #lanes = new Map(); // lane -> id -> task, as they came
  #shown = {};
  #stale = new Set(); // lanes that have changed since they were shown

  /** Lane -> its tasks in order. As long as a lane does not change, its array is the same object. */
  get lanes() {
    if (this.#stale.size) {
      const entries = [...this.#lanes].map(([lane, tasks]) => [
        lane,
        this.#stale.has(lane) ? this.#arranged(tasks) : this.#shown[lane],
      ]);
      this.#shown = Object.fromEntries(entries);
      this.#stale.clear();
    }
    return this.#shown;
  }

  /** The lanes in their order: those that the board was sent with, then others in the order they appeared. */
  get laneOrder() {
    return [...new Set([...(this.#laneOrder ?? []), ...this.#lanes.keys()])];
  }

  #arranged(tasks) {
    const found = [...tasks.values()];
    return this.#compare ? found.sort(this.#compare) : found;
  }

  /** Replaces the board, given the data of a `board.sync`. */
  replace(data) {
    const tasks = new Map();
    const lanes = new Map();
    fits(isObject(data) && isObject(data.lanes));
    for (const [lane, listed] of Object.entries(data.lanes)) {
      fits(Array.isArray(listed));
      const its = new Map();
      for (const task of listed) {
        fits(isObject(task) && isId(task.id));
        fits(!tasks.has(task.id), `two tasks with the id ${quoted(task.id)}${SHARED}`);
        const placed = laneName(task.lane) === lane ? task : { ...task, lane };
        tasks.set(task.id, placed);
        its.set(task.id, placed);
      }
      lanes.set(lane, its);
    }
    const { laneNames = null, laneOrder = null, orderBy = null } = data;
    fits(laneNames === null || isObject(laneNames));
    fits(laneOrder === null || Array.isArray(laneOrder));
    fits(orderBy === null || (Array.isArray(orderBy) && orderBy.every(isOrder)));
    this.laneNames = laneNames;
    this.#laneOrder = laneOrder;
    this.#compare = orderBy && comparison(orderBy);
    this.tasks.clear();
    for (const [id, task] of tasks) this.tasks.set(id, task);
    this.#lanes = lanes;
    this.#stale = new Set([...lanes.keys()]);
  }

  /** Applies messages, all or none, and returns the changes. */
  apply(messages) {
    const staged = new Map(); // id -> the task as it becomes, undefined if it goes
    const changes = [];
    for (const message of messages) {
      fits(isObject(message) && typeof message.type === "string");
      const held = (id) => (staged.has(id) ? staged.get(id) : this.tasks.get(id));
      const change = STEPS[message.type] && STEPS[message.type](message.data, held);
      if (!change) continue; // of a newer relay
      changes.push({ type: message.type, ...change });
      staged.set(change.id, change.task);
    }
    for (const change of changes) this.#commit(change);
    return changes;
  }

  #commit({ id, before, task }) {
    const from = before && laneName(before.lane);
    const to = task && laneName(task.lane);
    if (before && from !== to) this.#lane(from).delete(id);
    if (task) {
      this.tasks.set(id, task);
      this.#lane(to).set(id, task);
    } else {
      this.tasks.delete(id);
    }
  }

  #lane(name) {
    this.#stale.add(name);
    if (!this.#lanes.has(name)) this.#lanes.set(name, new Map());
    return this.#lanes.get(name);
  }
}

/** What each type of message does to a task, given its data and the tasks that are held, by id. */
const STEPS = Object.assign(Object.create(null), {
  "task.created": (data, held) => {
    fits(isObject(data) && isId(data.id));
    fits(held(data.id) === undefined, `a second task with the id ${quoted(data.id)}${SHARED}`);
    return { id: data.id, task: data };
  },
  "task.updated": (data, held) => {
    const before = known(data, held);
    const { id, changes } = data;
    fits(isObject(changes) && (!("id" in changes) || changes.id === id));
    return { id, before, task: { ...before, ...changes }, changes };
  },
  "task.moved": (data, held) => {
    const before = known(data, held);
    const { id, fromLane, toLane } = data;
    fits(toLane !== undefined);
    return { id, before, task: { ...before, lane: toLane }, fromLane, toLane };
  },
  "task.deleted": (data, held) => ({ before: known(data, held), id: data.id, task: undefined }),
});

function known(data, held) {
  fits(isObject(data));
  const before = held(data.id);
  fits(before !== undefined, `a change of the task ${quoted(data.id)}, which is not there`);
  return before;
}

// Listeners -----------------------------------------------------------------------------------------------------

class Emitter {
  #listeners = new Map();

  /** Calls a listener at each event. Returns a function that removes it. */
  on(event, listener) {
    const listeners = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, listeners.add(listener));
    return () => void listeners.delete(listener);
  }

  /** An error of a listener is reported as an uncaught error, and other listeners are called all the same. */
  _emit(event, value) {
    for (const listener of [...(this.#listeners.get(event) ?? [])]) {
      try {
        listener(value);
      } catch (fault) {
        queueMicrotask(() => {
          throw fault;
        });
      }
    }
  }
}

/** A promise that is settled from outside. If nobody awaits it, its rejection is not reported as unhandled. */
class Deferred {
  settled = false;

  constructor() {
    this.promise = new Promise((resolve, reject) => {
      this.resolve = (value) => this.#settle(resolve, value);
      this.reject = (error) => this.#settle(reject, error);
    });
    this.promise.catch(() => {});
  }

  #settle(how, value) {
    this.settled = true;
    how(value);
  }
}

// A board -------------------------------------------------------------------------------------------------------

/** One board that is followed, for all subscriptions to it. */
class Following {
  boards = new Set(); // the subscriptions to it
  replica = new Replica();
  state;
  present = false; // whether there has been a board
  waits = new Set(); // the transactions that are waited for
  #relay;
  #cursor = null;
  #parts = [];
  #batches = 0;
  #misfits = 0;
  #lastMisfit = -Infinity;
  #fence = 0; // number of the pong before which what comes is of another part of the board

  constructor(relay, id, state, selection) {
    this.id = id;
    this.selection = selection;
    this.#relay = relay;
    this.state = state;
  }

  /** Whether what arrives may still be of another part of the board. */
  get fenced() {
    return this.#relay._pongs < this.#fence;
  }

  /** Whether messages about it may arrive. */
  get followed() {
    return this.state === "live" || this.state === "catching up";
  }

  ask() {
    this.#parts = [];
    for (const board of this.boards) board._asked();
    this.enter("catching up");
    this.#fence = this.#relay._fence(this);
    if (this.#fence === Infinity) return; // there will be another connection
    this.#relay._send({ type: "subscribe", boardId: this.id, cursor: this.#cursor, ...this.selection });
    this.askWaits();
  }

  /** Asks the relay when the board includes a transaction, once for all who wait for it. */
  await(xid) {
    if (this.waits.has(xid)) return;
    this.waits.add(xid);
    if (this.followed) this.#askWait(xid);
  }

  /** Asks for everything that is waited for. The relay treats repeated questions as one. */
  askWaits() {
    if (this.followed) for (const xid of this.waits) this.#askWait(xid);
  }

  /** Handles the answer: the board includes a transaction, or the relay cannot say. */
  included(xid, error) {
    if (this.waits.delete(xid)) for (const board of [...this.boards]) board._included(xid, error);
  }

  #askWait(xid) {
    this.#relay._send({ type: "includes", boardId: this.id, xid });
  }

  #endWaits(error) {
    for (const xid of [...this.waits]) this.included(xid, error);
  }

  /** The connection, or the right to follow the board, is lost. */
  fail(error) {
    this.enter("offline");
    if (!error) return;
    this.#endWaits(error);
    for (const board of [...this.boards]) board._fail(error);
  }

  enter(state) {
    if (state === this.state) return;
    this.state = state;
    for (const board of [...this.boards]) board._emit("state", state);
  }

  receive(message) {
    if (!this.followed || this.fenced) return;
    try {
      this.#take(message);
    } catch (error) {
      if (!(error instanceof Misfit)) throw error;
      this.#askAgain(error.message);
    }
  }

  #take(message) {
    if (message.type === "board.sync") this.#takeBoard(message);
    else if (message.type === "batch") this.#takePart(message);
    else this.#takePlain(message);
  }

  #takeBoard({ data, cursor, reason }) {
    this.replica.replace(data);
    this.#parts = [];
    this.#cursor = typeof cursor === "string" ? cursor : null;
    if (reason === "epoch_changed") {
      // In another database, the same id may belong to another transaction.
      this.#endWaits(new RelayError("not_included", "the database is another now", { boardId: this.id }));
    }
    this.#arrived([{ type: "board.sync", reason }]);
  }

  #takePart({ data, cursor }) {
    if (this.#cursor === null) return; // a board.sync is to come first
    fits(Array.isArray(data));
    this.#parts.push(data);
    if (typeof cursor !== "string") return;
    const changes = this.replica.apply(this.#parts.flat());
    this.#parts = [];
    this.#cursor = cursor;
    this.#batches += 1;
    this.#arrived(changes.map((change) => ({ ...change, batch: this.#batches })));
  }

  /** Handles a change from a server without cursors. */
  #takePlain(message) {
    if (this.#cursor !== null || this.state !== "live") return;
    this.#arrived(this.replica.apply([message]));
  }

  #arrived(changes) {
    this.present = true;
    this.#relay._arrived(this);
    this.enter("live");
    for (const board of [...this.boards]) board._arrived(changes);
  }

  /** Requests the board at once the first time, then after pauses, and gives up if it never fits. */
  #askAgain(found) {
    const now = this.#relay._clock.now();
    this.#misfits = now - this.#lastMisfit > CALM ? 1 : this.#misfits + 1;
    this.#lastMisfit = now;
    this.#cursor = null;
    this.#parts = [];
    if (this.#misfits === 1) this.ask();
    else if (this.#misfits < MOST_MISFITS) {
      this.enter("catching up");
      this.#relay._askLater(this, pauseAfter(this.#misfits - 2));
    } else {
      this.#misfits = 0;
      this.#relay._giveUp(this, found);
    }
  }
}

/** One subscription to a board. Names with an underscore are for the Relay. */
class Board extends Emitter {
  #relay;
  #following;
  #ready = new Deferred();
  #left = null; // the board as it was, once this subscription has ended
  #waits = new Map(); // transactions that are waited for -> what becomes of that
  #forgetSignal = () => {};

  constructor(relay, following, signal) {
    super();
    this.#relay = relay;
    this.#following = following;
    following.boards.add(this);
    if (following.present) this.#ready.resolve();
    else if (signal) this.#heed(signal);
  }

  get id() {
    return this.#following.id;
  }

  get tasks() {
    return (this.#left ?? this.#following.replica).tasks;
  }

  get lanes() {
    return (this.#left ?? this.#following.replica).lanes;
  }

  get laneNames() {
    return (this.#left ?? this.#following.replica).laneNames;
  }

  get laneOrder() {
    return (this.#left ?? this.#following.replica).laneOrder;
  }

  get state() {
    return this.#left ? "offline" : this.#following.state;
  }

  get ready() {
    return this.#ready.promise;
  }

  unsubscribe() {
    this.#leave(new RelayError("unsubscribed", "the board was left before it came", { boardId: this.id }));
  }

  includes(xid, { signal } = {}) {
    const text = transactionId(xid);
    if (signal?.aborted) return Promise.reject(givenUp(this.id, signal));
    try {
      if (this.#left) throw new RelayError("unsubscribed", "the board was left", { boardId: this.id });
      const wait = this.#waits.get(text) ?? new Deferred();
      this.#waits.set(text, wait);
      this.#relay._await(this.#following, text);
      return signal ? untilAborted(wait.promise, this.id, signal) : wait.promise;
    } catch (error) {
      this.#waits.delete(text);
      return Promise.reject(error);
    }
  }

  _included(xid, error) {
    const wait = this.#waits.get(xid);
    this.#waits.delete(xid);
    if (error) wait?.reject(error);
    else wait?.resolve();
  }

  _asked() {
    if (this.#ready.settled && !this.#following.present) this.#ready = new Deferred();
  }

  _arrived(changes) {
    this.#ready.resolve();
    this.#forgetSignal();
    for (const change of changes) {
      if (this.#left) return; // a listener left
      this._emit("change", change);
    }
  }

  _fail(error) {
    if (!this.#following.present) this.#ready.reject(error);
    this._emit("error", error);
  }

  /** Is not wanted any more. */
  _end(reason) {
    const { tasks, lanes, laneNames, laneOrder } = this.#following.replica;
    const was = this.state;
    this.#left = { tasks: new Map(tasks), lanes, laneNames, laneOrder };
    this.#forgetSignal();
    if (!this.#following.present) this.#ready.reject(reason);
    for (const xid of [...this.#waits.keys()]) this._included(xid, reason);
    if (was !== "offline") this._emit("state", "offline");
  }

  #leave(reason) {
    if (!this.#left) this.#relay._leave(this, this.#following, reason);
  }

  /** Waits for the first board no longer than the signal allows. */
  #heed(signal) {
    const leave = () => this.#leave(givenUp(this.id, signal));
    signal.addEventListener("abort", leave);
    this.#forgetSignal = () => signal.removeEventListener("abort", leave);
  }
}

/** Why the wait for a board was aborted. Signals of older environments have no reason. */
const givenUp = (boardId, signal) =>
  signal.reason ?? new RelayError("unsubscribed", "the wait for the board was given up", { boardId });

/** Returns a promise that rejects with the signal's reason if that is aborted first. */
function untilAborted(promise, boardId, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => reject(givenUp(boardId, signal));
    signal.addEventListener("abort", abort);
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/** Returns a selection with its lists sorted, without duplicates. Throws TypeError if it is invalid. react.js uses it. */
export function selected(wanted) {
  const chosen = Object.entries(SELECTABLE).filter(([key]) => wanted[key] !== undefined && wanted[key] !== null);
  return Object.fromEntries(chosen.map(([key, types]) => [key, texts(key, wanted[key], types)]));
}

function texts(key, names, types) {
  if (Array.isArray(names) && names.every((name) => types.includes(typeof name))) {
    return [...new Set(names.map(String))].sort(compareTexts);
  }
  throw new TypeError(`${key} is no array of ${types.join("s or ")}s: expected one`);
}

/** Returns a transaction's id as text. Throws TypeError if it is not one. */
function transactionId(xid) {
  const text = String(xid);
  if (TRANSACTION.test(text) && (typeof xid !== "number" || Number.isSafeInteger(xid))) return text;
  throw new TypeError(`${text} is no transaction id: expected what pg_current_xact_id() gives, as a string or a bigint`);
}

const pauseAfter = (failures) => Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** failures);

// A connection --------------------------------------------------------------------------------------------------

/**
 * One attempt to connect, and the connection that results. `hooks`: opened, received, ended (called once, at the end),
 * and awaits, which returns whether a board is expected. `patience` is the number of unanswered pings it may take.
 */
class Link {
  #socket = null;
  #clock;
  #hooks;
  #timer;
  #heard = false;
  #over = false;
  #trouble = "";
  #patience;
  isOpen = false;
  pings = 0;
  pongs = 0;

  constructor(clock, hooks, patience) {
    this.#clock = clock;
    this.#hooks = hooks;
    this.#patience = patience;
  }

  async open(url, WebSocket, token) {
    let given;
    this.#after(TOKEN_TIMEOUT, () => this.cut(`no token within ${TOKEN_TIMEOUT / 1000} seconds`));
    try {
      given = await (typeof token === "function" ? token() : token); // never before connect() has returned
    } catch (error) {
      this.#ended({ code: BROKEN, trouble: String(error?.message ?? error) });
      return;
    }
    if (this.#over) return;
    try {
      // The package ws limits the size of messages by default. React Native warns about options that it does not know.
      const options = WebSocket.prototype?.terminate ? [{ maxPayload: 0 }] : [];
      this.#socket = new WebSocket(url, subprotocols(given), ...options);
    } catch (error) {
      const trouble = String(error?.message ?? error); // a token or an address that no attempt can use
      this.#ended({ code: BROKEN, trouble, hopeless: trouble });
      return;
    }
    this.#listen(this.#socket);
    this.#after(OPEN_TIMEOUT, () => this.cut(`no answer within ${OPEN_TIMEOUT / 1000} seconds`));
  }

  send(message) {
    if (this.isOpen) this.#socket.send(JSON.stringify(message));
  }

  /** Sends a ping, and returns the number of its pong. */
  ping() {
    this.send({ type: "ping" });
    return ++this.pings;
  }

  /** Sends a ping, and ends the link if nothing arrives in time. A pong waits behind a board that is being sent. */
  probe(timeout = PROBE_TIMEOUT) {
    if (!this.isOpen) return;
    this.#heard = false;
    this.ping();
    this.#after(this.#hooks.awaits() ? PING_INTERVAL : timeout, () => {
      if (this.#heard || (this.#hooks.awaits() && this.#patience-- > 0)) this.probe(PING_INTERVAL);
      else this.cut(SILENT);
    });
  }

  /** Ends a link that is not usable any more, without waiting for the relay. */
  cut(trouble) {
    const socket = this.#socket;
    this.#ended({ code: BROKEN, trouble });
    if (socket?.terminate) socket.terminate();
    else socket?.close();
  }

  /** Closes the connection by the closing handshake. */
  close(code = 1000) {
    const socket = this.#socket;
    this.#ended({ code, trouble: "" });
    socket?.close(1000);
  }

  #listen(socket) {
    socket.onopen = () => {
      this.isOpen = true;
      this.#after(PING_INTERVAL, () => this.probe(PING_INTERVAL));
      this.#hooks.opened();
    };
    socket.onmessage = ({ data }) => {
      this.#heard = true;
      this.#hooks.received(data);
    };
    socket.onerror = ({ message }) => {
      this.#trouble = message || "";
      if (!this.isOpen) this.#ended({ code: BROKEN, ...whyNot(this.#trouble) }); // Node's own closes no such socket
    };
    socket.onclose = ({ code, reason }) => this.#ended({ code, trouble: reason || this.#trouble });
  }

  #ended(how) {
    if (this.#over) return;
    this.#over = true;
    this.#clock.clearTimeout(this.#timer);
    const opened = this.isOpen;
    this.isOpen = false;
    if (this.#socket) Object.assign(this.#socket, { onopen: null, onmessage: null, onclose: null });
    this.#hooks.ended({ ...how, opened });
  }

  #after(milliseconds, callback) {
    this.#clock.clearTimeout(this.#timer);
    this.#timer = this.#clock.setTimeout(callback, milliseconds);
  }
}

/** Says why an attempt failed, given what the WebSocket reports, and whether another attempt would be useless. */
function whyNot(reported = "") {
  const status = Number(STATUS.exec(reported)?.[1]);
  if (!status) return { trouble: NO_STATUS.test(reported) ? UNKNOWN : reported };
  const trouble = `HTTP ${status}${LIMITED[status] ? `, ${LIMITED[status]}` : ""}`;
  if (status >= 500 || PASSING.has(status)) return { trouble };
  if (status === 401 || status === 403) {
    const hopeless = `the relay refused the connection (HTTP ${status}): give a good token, from an allowed origin`;
    return { trouble, hopeless, refused: true };
  }
  return { trouble, hopeless: `${trouble} was answered: expected the WebSocket endpoint of a relay` };
}

/** A browser cannot set headers, so the token is sent as a subprotocol. The relay selects the other one, which also
 * asks it to refuse a token or an origin by a close code: a browser hides the HTTP status from scripts. */
function subprotocols(token) {
  if (token === undefined || token === null) return ["relay"];
  return ["relay", `bearer.${checked(token)}`];
}

/** Returns a token if it is valid, else throws TypeError, with a message that does not contain it. */
function checked(token) {
  if (typeof token !== "string") throw new TypeError(`the token is of type ${typeof token}: expected a string`);
  if (!SUBPROTOCOL.test(token)) {
    throw new TypeError(
      "the token cannot be presented: found a character that no subprotocol can hold, such as / or =, or none at " +
        "all; expected letters, digits and -._~+ only, as in a JSON Web Token, or from `openssl rand -hex 32`",
    );
  }
  return token;
}

// The relay -----------------------------------------------------------------------------------------------------

/** Follows boards over one connection after another. Names with an underscore are for its boards. */
class Relay extends Emitter {
  #url;
  #address;
  #token;
  #WebSocket;
  #state = "connecting";
  #boards = new Map();
  #link = null;
  #asked = new Map(); // on this link: board -> what of it was last asked for
  #timer; // of the next attempt
  #waiting = false;
  #asking = new Map(); // boards that are to be asked for later -> timer
  #askingWaits; // the timer of what is waited for, and to be asked again
  #authenticating = []; // answers come in the order of the questions
  #failures = 0;
  #patience = 0; // with a link on which a board is to come: a large one takes long, and a part of it is not heard
  #boardCame = false; // on this link
  #hurried = false; // too many messages were sent on this link
  #renewed = false; // another token was given since the attempt began that led to this link
  #stopped = null; // the error after which it does not come back, until authenticate()
  #suspended = false; // while its page is put aside
  #heldABoard = false;
  #closed = false;
  #forgetNetwork;

  constructor(url, { token, WebSocket = globalThis.WebSocket, clock = REAL_CLOCK } = {}) {
    super();
    this.#url = url;
    this.#address = addressOf(url);
    if (typeof token !== "function") subprotocols(token);
    this.#token = token;
    this.#WebSocket = WebSocket;
    this._clock = clock;
    this.#forgetNetwork = heedNetwork(this.#stir);
  }

  get state() {
    return this.#state;
  }

  subscribe(boardId, { signal, ...wanted } = {}) {
    if (typeof boardId !== "string") throw new TypeError(`boardId is of type ${typeof boardId}: expected a string`);
    if (this.#closed) throw new RelayError("closed", "this relay was closed: connect again");
    if (!this.#WebSocket) {
      throw new TypeError("no WebSocket was found: pass one, connect(url, { WebSocket }), say that of package ws");
    }
    if (signal?.aborted) throw givenUp(boardId, signal);
    const selection = selected(wanted);
    let following = this.#boards.get(boardId);
    if (!following) {
      following = new Following(this, boardId, this.#state === "live" ? "connecting" : this.#state, selection);
      this.#boards.set(boardId, following);
    }
    if (JSON.stringify(following.selection) !== JSON.stringify(selection)) {
      const message = `the board ${boardId} is followed with another selection: connect again to follow both`;
      throw new RelayError("other_selection", message, { boardId });
    }
    const board = new Board(this, following, signal);
    if (this.#link?.isOpen) {
      if (!following.followed) following.ask();
    } else if (this.#stopped) board._fail(this.#stopped);
    else if (!this.#link && !this.#waiting && !this.#suspended) this.#attempt();
    return board;
  }

  authenticate(token) {
    checked(token);
    if (this.#link?.isOpen) {
      const answer = new Deferred();
      this.#authenticating.push({ token, answer });
      this._send({ type: "authenticate", token });
      return answer.promise;
    }
    this.#keep(token);
    this.#renewed = true;
    if (this.#stopped) {
      this.#stopped = null;
      this.#attempt();
    }
    return Promise.resolve();
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    this.#forgetNetwork();
    this.#clearAttempt();
    if (this.#link) this.#link.close();
    else this.#enter("offline");
    for (const { id, boards } of [...this.#boards.values()]) {
      for (const board of [...boards]) board._end(new RelayError("closed", "the relay was closed", { boardId: id }));
    }
  }

  // For boards

  _send(message) {
    this.#link?.send(message);
  }

  get _pongs() {
    return this.#link.pongs;
  }

  /**
   * Returns the number of the pong up to which messages are of the part that was requested earlier, or 0. After too many
   * messages the relay may have dropped a ping, so that pongs cannot be counted, or the end of the other part.
   */
  _fence({ id, selection }) {
    const [earlier, now] = [this.#asked.get(id), JSON.stringify(selection)];
    this.#asked.set(id, now);
    if (earlier === undefined || earlier === now) return 0;
    if (!this.#hurried) return this.#link.ping();
    const link = this.#link;
    this._clock.setTimeout(() => link.close(BROKEN), 0);
    return Infinity;
  }

  /** Waits until a board includes a transaction. Throws RelayError if that will never be known. */
  _await(following, xid) {
    if (this.#stopped) throw this.#stopped;
    if (this.#link?.isOpen && !following.followed) {
      throw new RelayError("not_subscribed", `the board ${following.id} is not followed`, { boardId: following.id });
    }
    following.await(xid);
  }

  /** Ends one subscription, and with the last one stops following the board. */
  _leave(board, following, reason) {
    following.boards.delete(board);
    if (following.boards.size === 0 && this.#boards.get(following.id) === following) {
      this.#boards.delete(following.id);
      this.#forgetAsking(following);
      if (following.followed) this._send({ type: "unsubscribe", boardId: following.id });
    }
    board._end(reason);
  }

  _arrived(following) {
    this.#forgetAsking(following);
    this.#boardCame = true;
    this.#heldABoard = true;
    this.#failures = 0;
  }

  /** Gives up a board that cannot be applied, until the next connection. */
  _giveUp(following, found) {
    const { id } = following;
    const message = `the board ${id} cannot be held: found ${found}, after ${MOST_MISFITS} attempts`;
    const error = new RelayError("unusable_board", message, { boardId: id });
    this._send({ type: "unsubscribe", boardId: id });
    following.fail(error);
    this._emit("error", error);
  }

  _askLater(following, longest) {
    this.#forgetAsking(following);
    const ask = () => {
      this.#asking.delete(following);
      following.ask();
    };
    this.#asking.set(following, this._clock.setTimeout(ask, this._clock.random() * longest));
  }

  // The connection

  #attempt() {
    this.#clearAttempt();
    this.#boardCame = this.#hurried = this.#renewed = false;
    const hooks = {
      opened: () => this.#opened(),
      received: (text) => this.#received(text),
      ended: (how) => this.#ended(how),
      awaits: () => this.#awaits(),
    };
    const link = new Link(this._clock, hooks, this.#patience);
    this.#link = link;
    void link.open(this.#url, this.#WebSocket, this.#token);
  }

  #awaits() {
    return [...this.#boards.values()].some(({ state }) => state === "catching up");
  }

  #opened() {
    this.#asked.clear();
    this.#enter("live");
    for (const following of [...this.#boards.values()]) following.ask();
  }

  #ended({ code, trouble, opened, hopeless, refused }) {
    this.#link = null;
    if (trouble === SILENT && this.#awaits()) this.#patience = Math.min(this.#patience * 2 + 1, MOST_PATIENCE);
    for (const following of [...this.#asking.keys()]) this.#forgetAsking(following);
    this._clock.clearTimeout(this.#askingWaits);
    const lost = new RelayError("closed", `the connection ended (${code})`, { closeCode: code });
    for (const { answer } of this.#authenticating.splice(0)) answer.reject(lost);
    this.#enter("offline");
    for (const following of [...this.#boards.values()]) following.fail();
    if (this.#closed || this.#suspended) return;
    const turnedAway = code === REFUSED && !this.#boardCame;
    if ((refused || turnedAway) && this.#renewed) {
      if (this.#boards.size && !this.#link) this.#attempt(); // it was the earlier token that was refused
      return;
    }
    // A function will return a new token.
    const mendable = (refused || turnedAway) && typeof this.#token === "function" && this.#heldABoard;
    if (HOPELESS.has(code) && !mendable && !(code === TOO_MANY && this.#hurried)) {
      const did = turnedAway ? "refused" : "closed";
      this.#stop(`the relay ${did} the connection: ${trouble || "no reason"} (${code})`, code);
    } else if (hopeless && !mendable) this.#stop(`no connection to ${this.#address}: ${hopeless}`);
    else {
      if (turnedAway) {
        const message = `the relay refused the connection: ${trouble}; the token's function is asked again`;
        this._emit("error", new RelayError("unreachable", message, { closeCode: code }));
      }
      this.#comeBack(code, trouble, opened);
    }
  }

  #stop(message, closeCode) {
    this.#stopped = new RelayError("closed", message, { closeCode });
    this._emit("error", this.#stopped);
    for (const following of [...this.#boards.values()]) {
      following.fail(new RelayError("closed", message, { closeCode, boardId: following.id }));
    }
  }

  #comeBack(code, trouble, opened) {
    if (!opened && this.#failures === 0) {
      const message = `no connection to ${this.#address}: ${trouble || "no reason was given"}`;
      this._emit("error", new RelayError("unreachable", message));
    }
    if (this.#closed || this.#link || this.#waiting) return; // a listener was faster
    let longest = pauseAfter(this.#failures++);
    if (code === RESTARTING || code === TOO_MANY) longest = RESTART_PAUSE;
    if (code === EXPIRED && this.#boardCame) longest = 0;
    this.#waiting = true;
    this.#timer = this._clock.setTimeout(() => {
      this.#waiting = false;
      if (this.#boards.size) this.#attempt();
    }, this._clock.random() * longest);
  }

  #clearAttempt() {
    this._clock.clearTimeout(this.#timer);
    this.#waiting = false;
  }

  #enter(state) {
    if (state === this.#state) return;
    this.#state = state;
    this._emit("state", state);
  }

  /** The machine woke up or its network changed: the connection may be dead, and a new attempt may succeed. */
  #stir = ({ type }) => {
    if (type === "pagehide") this.#suspend();
    else if (this.#suspended) this.#resume(type);
    else if (globalThis.document?.visibilityState === "hidden") return;
    else if (this.#link) this.#link.probe();
    else if (this.#waiting && type !== "offline" && this.#boards.size) this.#attempt();
  };

  /** The user leaves the page. Browsers keep it for "back" only if it has no open connection. */
  #suspend() {
    this.#suspended = true;
    this.#clearAttempt();
    this.#link?.close();
  }

  #resume(event) {
    if (event !== "pageshow") return;
    this.#suspended = false;
    if (!this.#stopped && this.#boards.size) this.#attempt();
  }

  // What comes

  #received(text) {
    let message;
    try {
      message = parse(text);
    } catch {
      message = null;
    }
    if (!isObject(message) || typeof message.type !== "string") {
      this.#link.cut("what came was no message");
      return;
    }
    if (message.type === "authenticated") this.#authenticated();
    else if (message.type === "pong") this.#link.pongs += 1;
    else if (message.type === "included") this.#boards.get(message.data?.boardId)?.included(message.data.xid);
    else if (message.type === "error") this.#refused(isObject(message.data) ? message.data : {});
    else if (message.boardId === undefined) this.#only(message)?.receive(message);
    else this.#boards.get(message.boardId)?.receive(message);
  }

  /** A server without cursors does not name the board in its messages. */
  #only(message) {
    const followed = [...this.#boards.values()].filter((following) => following.followed);
    const named = message.type === "task.created" ? message.data?.boardId : undefined;
    return followed.length === 1 && [undefined, followed[0].id].includes(named) ? followed[0] : undefined;
  }

  #authenticated() {
    const asked = this.#authenticating.shift();
    if (asked) {
      this.#keep(asked.token);
      asked.answer.resolve();
    }
    for (const following of [...this.#boards.values()]) if (!following.followed) following.ask();
  }

  #refused({ code, message, boardId, xid }) {
    const error = new RelayError(String(code), String(message), { boardId });
    const following = this.#boards.get(boardId);
    if (following && xid !== undefined) return following.included(xid, error);
    if (code === "board_unavailable") {
      following?.enter("catching up"); // it comes by itself, as soon as it can be read
      return this._emit("error", error);
    }
    if (following) this.#forgetAsking(following);
    following?.fail(error);
    if (code === "not_authenticated") this.#authenticating.shift()?.answer.reject(error);
    if (code === "too_many_messages") {
      this.#hurried = true;
      for (const { answer } of this.#authenticating.splice(0)) answer.reject(error); // it may never be answered
      if ([...this.#boards.values()].some(({ fenced }) => fenced)) this.#link.close(BROKEN);
      else this.#repeatLater();
    }
    this._emit("error", error);
  }

  /** Repeats what may be among the messages that the relay dropped: requests for boards, and for what is waited for. */
  #repeatLater() {
    const unheard = [...this.#boards.values()].filter((other) => other.state === "catching up");
    for (const other of unheard) this._askLater(other, RESTART_PAUSE);
    this.#askWaitsLater();
  }

  #askWaitsLater() {
    this._clock.clearTimeout(this.#askingWaits);
    const ask = () => {
      for (const following of [...this.#boards.values()]) following.askWaits();
    };
    this.#askingWaits = this._clock.setTimeout(ask, this._clock.random() * RESTART_PAUSE);
  }

  #forgetAsking(following) {
    this._clock.clearTimeout(this.#asking.get(following));
    this.#asking.delete(following);
  }

  /** A function is called each time. A fixed token is used until authenticate() replaces it. */
  #keep(token) {
    if (typeof this.#token !== "function") this.#token = token;
  }
}

/**
 * An address without user, password and query, which may hold a token. React Native's URL has no such parts, and it has
 * no location.
 */
function addressOf(url) {
  const base = globalThis.location?.href;
  const [, scheme, host, path] = ADDRESS.exec(whole(url, base)) ?? [];
  if (host) return scheme + host + path;
  throw new TypeError(`${String(url).split("?")[0]} is no address of a relay: expected one like ws://localhost:4002`);
}

function whole(url, base) {
  try {
    return base ? new URL(url, base).href : new URL(url).href;
  } catch {
    return ""; // no address
  }
}

/** In a browser, calls back when the machine woke up or its network changed. Returns a function that ends that. */
function heedNetwork(callback) {
  const heeded = [
    [globalThis.window, "online"],
    [globalThis.window, "offline"],
    [globalThis.window, "pagehide"],
    [globalThis.window, "pageshow"],
    [globalThis.document, "visibilitychange"],
  ];
  for (const [target, event] of heeded) target?.addEventListener?.(event, callback);
  return () => {
    for (const [target, event] of heeded) target?.removeEventListener?.(event, callback);
  };
}
