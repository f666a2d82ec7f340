// Runs cases.json on the JavaScript client, with a connection and a clock of its own: nothing waits.
// Prints a JSON object: the name of each case, and what was wrong with it or null.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { connect } from "../../relay/client/js/client.js";
import { World, settled } from "./world.mjs";

class Run {
  constructor({ boards = ["default"], tokens }) {
    this.world = new World();
    const { clock, WebSocket } = this.world;
    const token = tokens && (async () => tokens.shift());
    this.relay = connect("ws://relay.test", { clock, WebSocket, token });
    this.boards = {}; // the first subscription to each
    this.more = []; // the others
    this.followed = new Set();
    this.seen = {};
    for (const board of boards) this.subscribe(board);
  }

  subscribe(id, options) {
    const board = this.relay.subscribe(id, options);
    if (this.followed.has(id)) {
      this.more.push(board);
      return;
    }
    this.followed.add(id);
    this.boards[id] = board;
    const seen = (this.seen[id] = { changes: [], errors: [], included: [] });
    board.on("change", (change) => {
      const last = seen.changes.at(-1);
      if (change.batch !== undefined && last?.[0].batch === change.batch) last.push(change);
      else seen.changes.push([change]);
    });
    board.on("error", (error) => seen.errors.push(error));
  }

  unsubscribe(id) {
    const other = this.more.findIndex((board) => board.id === id);
    if (other >= 0) {
      this.more.splice(other, 1)[0].unsubscribe();
      return;
    }
    this.followed.delete(id);
    this.boards[id].unsubscribe();
  }

  async step(step) {
    const [[kind, value]] = Object.entries(step);
    const { world } = this;
    if (kind === "open") {
      assert.equal(world.socket?.state, "connecting", "no attempt to connect");
      world.socket.open();
    } else if (kind === "receive") world.socket.receive(JSON.stringify(value));
    else if (kind === "receive_text") world.socket.receive(value);
    else if (kind === "close") {
      assert.notEqual(world.socket.state, "closed", "nothing to close");
      world.socket.end(value);
    } else if (kind === "wait") await world.wait(value);
    else if (kind === "call") this.call(value, step);
    else if (kind === "expect") this.expect(value);
    else assert.fail(`unknown step ${kind}`);
    await settled();
  }

  call(name, { board, token, xid, ...selection }) {
    if (name === "subscribe") this.subscribe(board, selection);
    else if (name === "unsubscribe") this.unsubscribe(board);
    else if (name === "authenticate") this.relay.authenticate(token).catch(() => {});
    else if (name === "close") this.relay.close();
    else if (name === "includes") this.includes(xid, board);
    else assert.fail(`unknown call ${name}`);
  }

  includes(xid, id = "default") {
    const tell = (error) => this.seen[id].included.push({ xid, code: error?.code ?? null });
    this.boards[id].includes(xid).then(() => tell(), tell);
  }

  expect({ board: id = "default", ...expected }) {
    const board = this.boards[id];
    const lasting = {
      laneNames: () => board.laneNames,
      lanes: () => mapValues(board.lanes, (tasks) => tasks.map((task) => task.id)),
      tasks: () => Object.fromEntries([...board.tasks].map(([key, task]) => [String(key), task])),
      state: () => board.state,
      closed: () => Boolean(this.world.sockets.findLast(({ state }) => state !== "connecting")?.closedByClient),
      attempting: () => this.world.socket?.state === "connecting",
      token: () => this.world.socket.token,
      sent: () => this.world.sent.splice(0),
    };
    const { changes, errors, included } = this.seen[id];
    const passing = { changes: () => changes.splice(0), errors: () => errors.splice(0), included: () => included.splice(0) };
    for (const [key, value] of Object.entries(expected)) {
      const wanted = withIntegers(value);
      if (key in lasting) assert.deepEqual(lasting[key](), wanted, key);
      else if (key in passing) assert.deepEqual(only(passing[key](), wanted), wanted, key);
      else assert.fail(`unknown expectation ${key}`);
    }
  }

  end() {
    assert.deepEqual(this.world.sent, [], "sent, and not expected");
  }
}

/** Puts integers for what stands for them. */
function withIntegers(value) {
  if (Array.isArray(value)) return value.map(withIntegers);
  if (typeof value !== "object" || value === null) return value;
  if ("$integer" in value) return BigInt(value.$integer);
  return mapValues(value, withIntegers);
}

function mapValues(object, change) {
  return Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value)]));
}

/** Leaves what is not listed out of changes and errors; what is listed stays whole. */
function only(found, listed) {
  if (Array.isArray(found)) return found.map((its, index) => only(its, listed[index] ?? {}));
  return Object.fromEntries(Object.keys(listed).map((key) => [key, found[key]]));
}

const results = {};
for (const example of JSON.parse(readFileSync(new URL("cases.json", import.meta.url)))) {
  const run = new Run(example);
  results[example.name] = null;
  for (const [index, step] of [...example.steps.entries(), [example.steps.length, null]]) {
    try {
      await settled();
      if (step) await run.step(step);
      else run.end();
    } catch (error) {
      results[example.name] = `step ${index} ${JSON.stringify(step)}: ${error.message}`;
      break;
    }
  }
}
console.log(JSON.stringify(results));
