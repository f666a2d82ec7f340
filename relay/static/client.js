/**
 * Follows boards of a pg-relay, and holds each as it is in the database.
 *
 *     import { connect } from "./client.js";
 *
 *     const board = connect("ws://localhost:4002").subscribe("default");
 *     board.on("change", (change) => console.log(change.type, board.lanes));
 *
 * One module without dependencies, for browsers and for Node 18 or later; its types are in client.d.ts. Where there
 * is no global WebSocket (Node before 22), pass one: `connect(url, { WebSocket })`, say that of the package ws.
 *
 * From the core outwards: a `Replica` is the tasks of one board; a `Board` knows what of it is still to come, and
 * tells listeners; a `Link` is one connection, from the attempt to its end; a `Relay` holds boards over many links.
 *
 * Rules:
 * - A batch is applied whole or not at all, so a board is at any time what the table was at some moment.
 * - What does not fit is never guessed at: the board is asked for anew.
 * - Tasks are never changed in place: a change makes a new object, so an object that you hold stays as it is.
 * - Nothing of a link that has ended is heard any more.
 */

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 30_000;
const RESTART_PAUSE = 2_000; // after 1012: the relay is stopping, perhaps to start again
const CALM = 60_000; // so long after a misfit, the next one is the first again
const OPEN_TIMEOUT = 10_000;
const PING_INTERVAL = 30_000;
const PROBE_TIMEOUT = 5_000;
const HOPELESS = new Set([1002, 1007, 1008, 1009, 4003]); // close codes that waiting does not mend
const EXPIRED = 4001;
const RESTARTING = 1012;
const BROKEN = 1006;
const SUBPROTOCOL = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;

const REAL_CLOCK = {
  setTimeout: (callback, milliseconds) => setTimeout(callback, milliseconds),
  clearTimeout: (timer) => clearTimeout(timer),
  now: () => Date.now(),
  random: () => Math.random(),
};

/** Connects to a relay, and again whenever the connection is lost. Throws TypeError for what is no address. */
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

/** Parses JSON. An integer that a number would round is a BigInt. */
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

/** What cannot be, if we hold what the relay thinks we hold. */
class Misfit extends Error {}

function fits(condition) {
  if (!condition) throw new Misfit();
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isId = (value) => ["string", "number", "bigint"].includes(typeof value);

/** The key of a lane: a string as it is, null or a number as JSON. */
const laneName = (lane) => (typeof lane === "string" ? lane : String(lane ?? null));

/** The tasks of one board, by id and by lane. Pure. Its methods throw Misfit, and then have changed nothing. */
class Replica {
  tasks = new Map();
  #lanes = new Map(); // lane -> id -> task, in order
  #shown = {};
  #stale = new Set(); // lanes that have changed since they were shown

  /** Lane -> its tasks in order. The array of a lane that has not changed is the same as the last time. */
  get lanes() {
    if (this.#stale.size) {
      const entries = [...this.#lanes].map(([lane, tasks]) => [
        lane,
        this.#stale.has(lane) ? [...tasks.values()] : this.#shown[lane],
      ]);
      this.#shown = Object.fromEntries(entries);
      this.#stale.clear();
    }
    return this.#shown;
  }

  /** Holds another board, given the data of a `board.sync`. */
  replace(data) {
    const tasks = new Map();
    const lanes = new Map();
    fits(isObject(data) && isObject(data.lanes));
    for (const [lane, listed] of Object.entries(data.lanes)) {
      fits(Array.isArray(listed));
      const its = new Map();
      for (const task of listed) {
        fits(isObject(task) && isId(task.id) && !tasks.has(task.id));
        const placed = laneName(task.lane) === lane ? task : { ...task, lane };
        tasks.set(task.id, placed);
        its.set(task.id, placed);
      }
      lanes.set(lane, its);
    }
    this.tasks.clear();
    for (const [id, task] of tasks) this.tasks.set(id, task);
    this.#lanes = lanes;
    this.#stale = new Set([...lanes.keys()]);
  }

  /** Applies messages, all or none, and returns what changed. */
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

/** What each message does to a task, given its data and what is held of each id. */
const STEPS = Object.assign(Object.create(null), {
  "task.created": (data, held) => {
    fits(isObject(data) && isId(data.id) && held(data.id) === undefined);
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
  fits(before !== undefined);
  return before;
}

// Listeners -----------------------------------------------------------------------------------------------------

class Emitter {
  #listeners = new Map();

  /** Calls a listener at each event; returns a function that ends that. */
  on(event, listener) {
    const listeners = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, listeners.add(listener));
    return () => void listeners.delete(listener);
  }

  /** A listener that throws is heard of like any other fault of the program, and harms nobody else. */
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

/** A promise that somebody else keeps; who does not await it need not mind that it is broken. */
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

/** One board that is followed. What begins with an underscore is for the Relay. */
class Board extends Emitter {
  #relay;
  #state;
  #replica = new Replica();
  #cursor = null;
  #parts = [];
  #batches = 0;
  #ready = new Deferred();
  #present = false; // whether there has been a board
  #misfits = 0;
  #lastMisfit = -Infinity;

  constructor(relay, id, state) {
    super();
    this.id = id;
    this.#relay = relay;
    this.#state = state;
  }

  get tasks() {
    return this.#replica.tasks;
  }

  get lanes() {
    return this.#replica.lanes;
  }

  get state() {
    return this.#state;
  }

  get ready() {
    return this.#ready.promise;
  }

  unsubscribe() {
    this.#relay._leave(this);
  }

  /** Whether messages of it may come. */
  get _followed() {
    return this.#state === "live" || this.#state === "catching up";
  }

  _ask() {
    this.#parts = [];
    if (this.#ready.settled && !this.#present) this.#ready = new Deferred();
    this._enter("catching up");
    this.#relay._send({ type: "subscribe", boardId: this.id, cursor: this.#cursor });
  }

  /** Has no connection, or no right to be followed, any more. */
  _fail(error) {
    this._enter("offline");
    if (!error) return;
    if (!this.#present) this.#ready.reject(error);
    this._emit("error", error);
  }

  /** Is not wanted any more. */
  _end(error) {
    if (!this.#present) this.#ready.reject(error);
    this._enter("offline");
  }

  _enter(state) {
    if (state === this.#state) return;
    this.#state = state;
    this._emit("state", state);
  }

  _receive(message) {
    if (!this._followed) return;
    try {
      this.#take(message);
    } catch (error) {
      if (!(error instanceof Misfit)) throw error;
      this.#askAnew();
    }
  }

  #take(message) {
    if (message.type === "board.sync") this.#takeBoard(message);
    else if (message.type === "batch") this.#takePart(message);
    else this.#takePlain(message);
  }

  #takeBoard({ data, cursor, reason }) {
    this.#replica.replace(data);
    this.#parts = [];
    this.#cursor = typeof cursor === "string" ? cursor : null;
    this.#arrived([{ type: "board.sync", reason }]);
  }

  #takePart({ data, cursor }) {
    if (this.#cursor === null) return; // a board.sync is to come first
    fits(Array.isArray(data));
    this.#parts.push(data);
    if (typeof cursor !== "string") return;
    const changes = this.#replica.apply(this.#parts.flat());
    this.#parts = [];
    this.#cursor = cursor;
    this.#batches += 1;
    this.#arrived(changes.map((change) => ({ ...change, batch: this.#batches })));
  }

  /** From a server without cursors. */
  #takePlain(message) {
    if (this.#cursor !== null || this.#state !== "live") return;
    this.#arrived(this.#replica.apply([message]));
  }

  #arrived(changes) {
    this.#present = true;
    this.#relay._arrived(this);
    this._enter("live");
    this.#ready.resolve();
    for (const change of changes) {
      if (!this._followed) return; // a listener left
      this._emit("change", change);
    }
  }

  /** At once the first time; but a relay whose answers never fit is not to be asked without end. */
  #askAnew() {
    const now = this.#relay._clock.now();
    this.#misfits = now - this.#lastMisfit > CALM ? 0 : this.#misfits + 1;
    this.#lastMisfit = now;
    this.#cursor = null;
    this.#parts = [];
    if (this.#misfits === 0) this._ask();
    else {
      this._enter("catching up");
      this.#relay._askLater(this, pauseAfter(this.#misfits - 1));
    }
  }
}

const pauseAfter = (failures) => Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** failures);

// A connection --------------------------------------------------------------------------------------------------

/** One attempt to connect, and the connection that it leads to. `hooks`: opened, received, ended (once, at last). */
class Link {
  #socket = null;
  #clock;
  #hooks;
  #timer;
  #heard = false;
  #over = false;
  #trouble = "";
  isOpen = false;

  constructor(clock, hooks) {
    this.#clock = clock;
    this.#hooks = hooks;
  }

  async open(url, WebSocket, token) {
    try {
      const given = await (typeof token === "function" ? token() : token); // never before connect() has returned
      if (this.#over) return;
      this.#socket = new WebSocket(url, subprotocols(given), { maxPayload: 0 }); // of the package ws: no limit
    } catch (error) {
      this.#ended({ code: BROKEN, trouble: String(error?.message ?? error) });
      return;
    }
    this.#listen(this.#socket);
    this.#after(OPEN_TIMEOUT, () => this.cut(`no answer within ${OPEN_TIMEOUT / 1000} seconds`));
  }

  send(message) {
    if (this.isOpen) this.#socket.send(JSON.stringify(message));
  }

  /** Asks for a sign of life, and ends the link if there is none in time. */
  probe(timeout = PROBE_TIMEOUT) {
    if (!this.isOpen) return;
    this.#heard = false;
    this.send({ type: "ping" });
    this.#after(timeout, () => (this.#heard ? this.probe(PING_INTERVAL) : this.cut("nothing was heard")));
  }

  /** Ends a link that is of no use any more, without waiting for the other side. */
  cut(trouble) {
    const socket = this.#socket;
    this.#ended({ code: BROKEN, trouble });
    if (socket?.terminate) socket.terminate();
    else socket?.close();
  }

  /** Says good-bye. */
  close() {
    const socket = this.#socket;
    this.#ended({ code: 1000, trouble: "" });
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
    };
    socket.onclose = ({ code, reason }) => this.#ended({ code, trouble: reason || this.#trouble });
  }

  #ended({ code, trouble }) {
    if (this.#over) return;
    this.#over = true;
    this.#clock.clearTimeout(this.#timer);
    const opened = this.isOpen;
    this.isOpen = false;
    if (this.#socket) Object.assign(this.#socket, { onopen: null, onmessage: null, onclose: null });
    this.#hooks.ended({ code, trouble, opened });
  }

  #after(milliseconds, callback) {
    this.#clock.clearTimeout(this.#timer);
    this.#timer = this.#clock.setTimeout(callback, milliseconds);
  }
}

/** A browser can set no headers, so the token is a subprotocol. The relay takes the other one. */
function subprotocols(token) {
  if (token === undefined || token === null) return [];
  if (typeof token !== "string" || !SUBPROTOCOL.test(token)) {
    throw new TypeError("the token is no text that a subprotocol can hold: expected letters, digits and -._~+ only");
  }
  return ["relay", `bearer.${token}`];
}

// The relay -----------------------------------------------------------------------------------------------------

/** The boards, over one connection after another. What begins with an underscore is for its boards. */
class Relay extends Emitter {
  #url;
  #address;
  #token;
  #WebSocket;
  #state = "connecting";
  #boards = new Map();
  #link = null;
  #timer; // of the next attempt
  #waiting = false;
  #asking = new Map(); // boards that are to be asked for later -> timer
  #authenticating = []; // answers come in the order of the questions
  #failures = 0;
  #boardCame = false; // on this link
  #stopped = false; // until authenticate()
  #closed = false;
  #forgetNetwork;

  constructor(url, { token, WebSocket = globalThis.WebSocket, clock = REAL_CLOCK } = {}) {
    super();
    if (!WebSocket) {
      throw new TypeError("no WebSocket was found: pass one, connect(url, { WebSocket }), say that of package ws");
    }
    this.#url = url;
    this.#address = addressOf(url);
    this.#token = token;
    this.#WebSocket = WebSocket;
    this._clock = clock;
    this.#forgetNetwork = heedNetwork(this.#stir);
    this.#attempt();
  }

  get state() {
    return this.#state;
  }

  subscribe(boardId) {
    if (typeof boardId !== "string") throw new TypeError(`boardId is of type ${typeof boardId}: expected a string`);
    if (this.#closed) throw new RelayError("closed", "this relay was closed: connect again");
    let board = this.#boards.get(boardId);
    if (board) return board;
    const idle = !this.#link && !this.#waiting && !this.#stopped;
    board = new Board(this, boardId, this.#state === "live" ? "connecting" : this.#state);
    this.#boards.set(boardId, board);
    if (this.#link?.isOpen) board._ask();
    else if (idle) this.#attempt();
    else if (this.#stopped) board._fail(new RelayError("closed", "the relay has turned us away", { boardId }));
    return board;
  }

  authenticate(token) {
    if (typeof token !== "string") throw new TypeError(`token is of type ${typeof token}: expected a string`);
    if (this.#link?.isOpen) {
      const answer = new Deferred();
      this.#authenticating.push({ token, answer });
      this._send({ type: "authenticate", token });
      return answer.promise;
    }
    this.#keep(token);
    if (this.#stopped) {
      this.#stopped = false;
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
    for (const { id } of this.#boards.values()) {
      this.#boards.get(id)._end(new RelayError("closed", "the relay was closed", { boardId: id }));
    }
  }

  // For boards

  _send(message) {
    this.#link?.send(message);
  }

  _leave(board) {
    if (this.#boards.get(board.id) !== board) return;
    this.#boards.delete(board.id);
    this.#forgetAsking(board);
    if (board._followed) this._send({ type: "unsubscribe", boardId: board.id });
    board._end(new RelayError("unsubscribed", "the board was left before it came", { boardId: board.id }));
  }

  _arrived(board) {
    this.#forgetAsking(board);
    this.#boardCame = true;
    this.#failures = 0;
  }

  _askLater(board, longest) {
    this.#forgetAsking(board);
    const ask = () => {
      this.#asking.delete(board);
      board._ask();
    };
    this.#asking.set(board, this._clock.setTimeout(ask, this._clock.random() * longest));
  }

  // The connection

  #attempt() {
    this.#clearAttempt();
    this.#boardCame = false;
    const link = new Link(this._clock, {
      opened: () => this.#opened(),
      received: (text) => this.#received(text),
      ended: (how) => this.#ended(how),
    });
    this.#link = link;
    void link.open(this.#url, this.#WebSocket, this.#token);
  }

  #opened() {
    this.#enter("live");
    for (const board of [...this.#boards.values()]) board._ask();
  }

  #ended({ code, trouble, opened }) {
    this.#link = null;
    for (const board of [...this.#asking.keys()]) this.#forgetAsking(board);
    const lost = new RelayError("closed", `the connection ended (${code})`, { closeCode: code });
    for (const { answer } of this.#authenticating.splice(0)) answer.reject(lost);
    this.#enter("offline");
    for (const board of [...this.#boards.values()]) board._fail();
    if (this.#closed) return;
    if (HOPELESS.has(code)) this.#stop(code, trouble);
    else this.#comeBack(code, trouble, opened);
  }

  #stop(closeCode, reason) {
    this.#stopped = true;
    const message = `the relay closed the connection: ${reason || "no reason"} (${closeCode})`;
    this._emit("error", new RelayError("closed", message, { closeCode }));
    for (const board of [...this.#boards.values()]) {
      board._fail(new RelayError("closed", message, { closeCode, boardId: board.id }));
    }
  }

  #comeBack(code, trouble, opened) {
    if (!opened && this.#failures === 0) {
      const message = `no connection to ${this.#address}: ${trouble || "no reason was given"}`;
      this._emit("error", new RelayError("unreachable", message));
    }
    if (this.#closed || this.#link || this.#waiting) return; // a listener was faster
    let longest = pauseAfter(this.#failures++);
    if (code === RESTARTING) longest = RESTART_PAUSE;
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

  /** Something happened to the machine or its network: what we have may be dead, and what failed may work. */
  #stir = ({ type }) => {
    if (globalThis.document?.visibilityState === "hidden") return;
    if (this.#link) this.#link.probe();
    else if (this.#waiting && type !== "offline" && this.#boards.size) this.#attempt();
  };

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
    else if (message.type === "error") this.#refused(isObject(message.data) ? message.data : {});
    else if (message.boardId === undefined) this.#only(message)?._receive(message);
    else this.#boards.get(message.boardId)?._receive(message);
  }

  /** A server without cursors does not say of which board it speaks. */
  #only(message) {
    const followed = [...this.#boards.values()].filter((board) => board._followed);
    const named = message.type === "task.created" ? message.data?.boardId : undefined;
    return followed.length === 1 && [undefined, followed[0].id].includes(named) ? followed[0] : undefined;
  }

  #authenticated() {
    const asked = this.#authenticating.shift();
    if (asked) {
      this.#keep(asked.token);
      asked.answer.resolve();
    }
    for (const board of [...this.#boards.values()]) if (!board._followed) board._ask();
  }

  #refused({ code, message, boardId }) {
    const error = new RelayError(String(code), String(message), { boardId });
    const board = this.#boards.get(boardId);
    if (board) this.#forgetAsking(board);
    board?._fail(error);
    if (code === "not_authenticated") this.#authenticating.shift()?.answer.reject(error);
    if (code === "too_many_messages") {
      // One that asked for a board may be among those that were not heard.
      const unheard = [...this.#boards.values()].filter((other) => other.state === "catching up");
      for (const other of unheard) this._askLater(other, RESTART_PAUSE);
    }
    this._emit("error", error);
  }

  #forgetAsking(board) {
    this._clock.clearTimeout(this.#asking.get(board));
    this.#asking.delete(board);
  }

  /** A function is asked each time; a token that was given is used until there is a fresh one. */
  #keep(token) {
    if (typeof this.#token !== "function") this.#token = token;
  }
}

/** An address without user, password and query, which may hold a token. */
function addressOf(url) {
  try {
    const { protocol, host, pathname } = new URL(url, globalThis.location?.href);
    if (/^(ws|http)s?:$/.test(protocol)) return `${protocol}//${host}${pathname}`;
  } catch {
    // as below
  }
  throw new TypeError(`${String(url).split("?")[0]} is no address of a relay: expected one like ws://localhost:4002`);
}

/** Calls back, in a browser, when its machine woke or its network changed; returns a function that ends that. */
function heedNetwork(callback) {
  const heeded = [
    [globalThis.window, "online"],
    [globalThis.window, "offline"],
    [globalThis.window, "pageshow"],
    [globalThis.document, "visibilitychange"],
  ];
  for (const [target, event] of heeded) target?.addEventListener(event, callback);
  return () => {
    for (const [target, event] of heeded) target?.removeEventListener(event, callback);
  };
}
