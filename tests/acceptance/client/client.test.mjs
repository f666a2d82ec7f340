// What is the JavaScript client's own, beside what all clients do: promises, listeners, and a browser's network.

import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import { connect } from "../../../relay/client/js/client.js";
import { World, settled } from "../../conformance/world.mjs";

const PING = { type: "ping" };
const sync = (...todo) =>
  JSON.stringify({ type: "board.sync", boardId: "default", cursor: "c1", data: { lanes: { todo } } });
const batch = (...data) => JSON.stringify({ type: "batch", boardId: "default", cursor: "c2", data });
const refusal = JSON.stringify({ type: "error", data: { code: "not_allowed", message: "no", boardId: "default" } });
const created = (id) => ({ type: "task.created", data: { id, lane: "todo" } });

async function start(options) {
  const world = new World();
  const relay = connect("ws://relay.test/?token=secret", { ...world, ...options });
  const board = relay.subscribe("default");
  await settled();
  return { world, relay, board };
}

async function live(options) {
  const all = await start(options);
  all.world.socket.open();
  all.world.socket.receive(sync());
  await settled();
  all.world.sent.length = 0;
  return all;
}

/** Makes this a browser's window. */
function browser() {
  globalThis.window = new EventTarget();
  globalThis.document = Object.assign(new EventTarget(), { visibilityState: "visible" });
}

afterEach(() => {
  delete globalThis.window;
  delete globalThis.document;
});

test("ready is kept with the first board, and broken if the board is refused before", async () => {
  const { world, board } = await start();
  world.socket.open();
  world.socket.receive(refusal);
  await assert.rejects(board.ready, { name: "RelayError", code: "not_allowed", boardId: "default" });
  world.socket.end(1006);
  await world.wait(0.5);
  world.socket.open();
  world.socket.receive(sync());
  await board.ready;
});

test("ready is broken by leaving, closing and a close that waiting does not cure", async () => {
  const left = await start();
  left.board.unsubscribe();
  await assert.rejects(left.board.ready, { code: "unsubscribed" });
  const closed = await start();
  closed.relay.close();
  await assert.rejects(closed.board.ready, { code: "closed" });
  const revoked = await start();
  revoked.world.socket.open();
  revoked.world.socket.end(4003);
  await assert.rejects(revoked.board.ready, { code: "closed", closeCode: 4003 });
  await assert.rejects(revoked.relay.subscribe("other").ready, { code: "closed" });
});

test("a token function that does not answer in time is called again, and its late answer does nothing", async () => {
  const answers = [];
  const { world } = await start({ token: () => new Promise((resolve) => answers.push(resolve)) });
  await world.wait(30);
  await world.wait(0.5);
  assert.equal(answers.length, 2);
  answers[0]("late");
  await settled();
  assert.equal(world.sockets.length, 0);
  answers[1]("fresh");
  await settled();
  assert.deepEqual(
    world.sockets.map(({ token }) => token),
    ["fresh"],
  );
});

test("after a revoked token, a fresh one connects again", async () => {
  const { world, relay, board } = await live({ token: "old" });
  world.socket.end(4003);
  await relay.authenticate("fresh");
  await settled();
  assert.equal(world.socket.token, "fresh");
  world.socket.open();
  assert.equal(board.state, "catching up");
});

test("authenticate is kept when the relay has taken the token, which is then used, and else broken", async () => {
  const { world, relay } = await live({ token: "old" });
  const good = relay.authenticate("good");
  const bad = relay.authenticate("bad");
  world.socket.receive('{"type":"authenticated"}');
  world.socket.receive('{"type":"error","data":{"code":"not_authenticated","message":"no"}}');
  await good;
  await assert.rejects(bad, { code: "not_authenticated" });
  const lost = relay.authenticate("lost");
  world.socket.end(1006);
  await assert.rejects(lost, { code: "closed" });
  await world.wait(0.5);
  assert.equal(world.socket.token, "good");
});

test("a token that cannot be had is reported without secrets, and asked for again", async () => {
  const errors = [];
  const world = new World();
  const token = () => Promise.reject(new Error("no session"));
  const relay = connect("ws://user:secret@relay.test/?token=secret", { ...world, token });
  relay.on("error", (error) => errors.push(error));
  relay.subscribe("default");
  await settled();
  assert.deepEqual(errors.map(({ code }) => code), ["unreachable"]);
  assert.equal(errors[0].message, "no connection to ws://relay.test/: no session");
  assert.equal(world.timers.length, 1);
});

test("a token that cannot be presented is one error, which ends ready and all attempts", async () => {
  for (const token of ["to ken", "c2VjcmV0/w==", "", 7]) {
    const errors = [];
    const { world, relay, board } = await start({ token: async () => token });
    relay.on("error", (error) => errors.push(error));
    await assert.rejects(board.ready, ({ code, message }) => {
      assert.equal(code, "closed");
      assert.match(message, /^no connection to ws:\/\/relay\.test\/: the token (cannot be presented|is of type number)/);
      assert.doesNotMatch(message, /secret|to ken|c2Vj/);
      return true;
    });
    assert.deepEqual(world.timers, []);
    const world2 = new World();
    assert.throws(() => connect("ws://relay.test", { ...world2, token }), /^TypeError: the token /);
    assert.throws(() => relay.authenticate(token), /^TypeError: the token /);
    await relay.authenticate("c2VjcmV0");
    await settled();
    assert.equal(world.sockets.length, 0); // the function is asked again, and has nothing better
  }
});

const REFUSED = {
  "the package ws": "Unexpected server response: STATUS",
  "React Native on Android": "Expected HTTP 101 response but was 'STATUS Reason'",
  "React Native on iOS": "Received bad response code from server: STATUS.",
};

for (const [environment, words] of Object.entries(REFUSED)) {
  test(`a refusal that ${environment} reports ends ready, a limit does not`, async () => {
    for (const [status, expected] of [[401, /refused the connection \(HTTP 401\)/], [404, /HTTP 404 was answered/]]) {
      const { world, board } = await start();
      world.socket.end(1006, words.replace("STATUS", status));
      await assert.rejects(board.ready, { code: "closed", message: expected });
      assert.deepEqual(world.timers, []);
    }
    for (const [status, expected] of [[429, /HTTP 429, .*WS_RATE_LIMIT_PER_CLIENT/], [503, /WS_MAX_CONNECTIONS/]]) {
      const errors = [];
      const { world, relay } = await start();
      relay.on("error", (error) => errors.push(error));
      world.socket.end(1006, words.replace("STATUS", status));
      assert.deepEqual(errors.map(({ code }) => code), ["unreachable"]);
      assert.match(errors[0].message, expected);
      await world.wait(0.5);
      assert.equal(world.sockets.length, 2);
    }
  });
}

test("numbers of an address are no status, and where no reason is given the possible ones are named", async () => {
  const cases = [["connect ECONNREFUSED 10.0.4.1:429", /ECONNREFUSED 10\.0\.4\.1:429$/], ["", /HTTP 429: see WS_RATE_LIMIT_PER_CLIENT.*WS_MAX_CONNECTIONS/]];
  for (const [message, expected] of cases) {
    const errors = [];
    const { world, relay } = await start();
    relay.on("error", (error) => errors.push(error));
    world.socket.end(1006, message);
    assert.equal(errors[0].code, "unreachable");
    assert.match(errors[0].message, expected);
    assert.equal(world.timers.length, 1);
  }
});

test("a refused token of a function that once had a good one is asked for again", async () => {
  const { world, board } = await live({ token: async () => "token" });
  world.socket.end(1006);
  await world.wait(0.5);
  world.socket.end(1006, "Unexpected server response: 401");
  await world.wait(1);
  assert.equal(world.sockets.length, 3);
  world.socket.open();
  assert.equal(board.state, "catching up");
});

test("a refusal by a close code is said once, and ends ready", async () => {
  const errors = [];
  const { world, relay, board } = await start({ token: "bad" });
  relay.on("error", (error) => errors.push(error));
  world.socket.open();
  world.socket.end(4003);
  const message = "the relay refused the connection: no reason (4003)";
  await assert.rejects(board.ready, { code: "closed", closeCode: 4003, message });
  assert.deepEqual(errors.filter(({ boardId }) => !boardId).map(({ message }) => message), [message]);
  assert.deepEqual(world.timers, []);
});

test("a token that is refused by a close code, of a function that once had a good one, is asked for again", async () => {
  const errors = [];
  const { world, relay, board } = await live({ token: async () => "token" });
  relay.on("error", (error) => errors.push(error));
  world.socket.end(1006);
  await world.wait(0.5);
  world.socket.open();
  world.socket.end(4003, "give a good token");
  assert.deepEqual(errors.map(({ code, closeCode }) => [code, closeCode]), [["unreachable", 4003]]);
  await world.wait(1);
  assert.equal(world.sockets.length, 3);
  world.socket.open();
  assert.equal(board.state, "catching up");
});

test("a WebSocket that cannot be made ends ready", async () => {
  class WebSocket {
    constructor() {
      throw new SyntaxError("the address is not allowed from a secure page");
    }
  }
  const { world, board } = await start({ WebSocket });
  await assert.rejects(board.ready, { code: "closed", message: /not allowed from a secure page$/ });
  assert.deepEqual(world.timers, []);
});

test("the wait for a board ends with the signal, and a board that came is not concerned", async () => {
  const { world, relay, board } = await start();
  const [early, late] = [new AbortController(), new AbortController()];
  const hasty = relay.subscribe("default", { signal: early.signal });
  const patient = relay.subscribe("default", { signal: late.signal });
  world.socket.open();
  early.abort(new Error("too slow"));
  await assert.rejects(hasty.ready, /too slow/);
  assert.equal(hasty.state, "offline");
  world.socket.receive(sync());
  late.abort();
  await Promise.all([board.ready, patient.ready]);
  assert.equal(patient.state, "live");
  assert.throws(() => relay.subscribe("other", { signal: early.signal }), /too slow/);
  const last = new AbortController();
  const alone = relay.subscribe("other", { signal: last.signal });
  last.abort();
  await assert.rejects(alone.ready, { name: "AbortError" });
  assert.deepEqual(world.sent.slice(1).map(({ type }) => type), ["subscribe", "unsubscribe"]);
});

test("nobody ends the subscription of another, however often", async () => {
  const { world, relay, board } = await live();
  const other = relay.subscribe("default");
  const heard = [];
  other.on("change", ({ id }) => heard.push(["other", id]));
  board.on("change", ({ id }) => heard.push(["board", id]));
  await other.ready;
  world.socket.receive(batch(created("a")));
  other.unsubscribe();
  world.socket.receive(batch(created("b")));
  other.unsubscribe();
  assert.deepEqual(heard, [["board", "a"], ["other", "a"], ["board", "b"]]);
  assert.deepEqual([[...other.tasks.keys()], other.lanes.todo.length, other.state], [["a"], 1, "offline"]);
  assert.deepEqual([[...board.tasks.keys()], board.lanes.todo.length, board.state], [["a", "b"], 2, "live"]);
  assert.deepEqual(world.sent, []);
});

test("React Native, which has a window without listeners and a URL without parts, is an environment", async (t) => {
  globalThis.window = {};
  const { URL } = globalThis;
  globalThis.URL = class {
    constructor(url) {
      this.href = url;
    }
    get host() {
      throw new Error("URL.host is not implemented");
    }
  };
  t.after(() => (globalThis.URL = URL));
  const { world, relay, board } = await live();
  assert.equal(board.state, "live");
  assert.deepEqual(world.socket.options, []); // it warns of those that it does not know
  relay.close();
  assert.throws(() => connect("https:relay", world), TypeError);
});

test("what is no address or no WebSocket is a TypeError that says what to do", async () => {
  assert.throws(() => connect("ftp://relay.test", new World()), /^TypeError: ftp:.* is no address of a relay/);
  const without = connect("ws://relay.test", { WebSocket: null });
  assert.throws(() => without.subscribe("default"), /^TypeError: no WebSocket was found: pass/);
  const { relay } = await start();
  assert.throws(() => relay.subscribe(7), /^TypeError: boardId is of type number/);
});

test("nothing is connected before the first board, so a module that connects does no harm on a web server", async () => {
  const world = new World();
  const relay = connect("ws://relay.test", world);
  await settled();
  assert.deepEqual([world.sockets.length, world.timers.length, relay.state], [0, 0, "connecting"]);
  relay.subscribe("default");
  await settled();
  assert.equal(world.sockets.length, 1);
});

test("a listener that throws disturbs neither the board nor the others, and is heard of", async (t) => {
  const { world, board } = await live();
  const faults = [];
  t.mock.method(globalThis, "queueMicrotask", (callback) => faults.push(callback));
  const heard = [];
  board.on("change", () => { throw new Error("mine"); });
  const end = board.on("change", (change) => heard.push([change.id, [...board.tasks.keys()]]));
  world.socket.receive(batch(created("a"), created("b")));
  end();
  world.socket.receive(batch(created("c")));
  assert.deepEqual(heard, [["a", ["a", "b"]], ["b", ["a", "b"]]]);
  assert.equal(faults.length, 3);
  assert.throws(faults[0], /mine/);
});

test("a listener that leaves hears no more", async () => {
  const { world, board } = await live();
  const heard = [];
  board.on("change", (change) => {
    heard.push(change.id);
    board.unsubscribe();
  });
  world.socket.receive(batch(created("a"), created("b")));
  assert.deepEqual(heard, ["a"]);
});

test("objects that were handed out stay as they are, and lanes that did not change are the same", async () => {
  const { world, board } = await live();
  const moved = { type: "task.moved", data: { id: "a", fromLane: "todo", toLane: "done" } };
  world.socket.receive(batch(created("a"), moved));
  const [before, lanes] = [board.tasks.get("a"), board.lanes];
  world.socket.receive(batch(created("b")));
  assert.equal(board.lanes.done, lanes.done);
  assert.deepEqual(lanes.todo, []);
  assert.equal(board.lanes, board.lanes);
  world.socket.receive(batch({ type: "task.updated", data: { id: "a", changes: { title: "New" } } }));
  assert.deepEqual(before, { id: "a", lane: "done" });
});

test("names like __proto__ are names", async () => {
  const { world, board } = await live();
  const lane = "__proto__";
  const lanes = `{"${lane}":[{"id":"a","lane":"${lane}"}]}`;
  world.socket.receive(`{"type":"board.sync","boardId":"default","data":{"lanes":${lanes}}}`);
  world.socket.receive('{"type":"constructor","data":{"id":"a"}}');
  world.socket.receive(`{"type":"task.updated","data":{"id":"a","changes":{"${lane}":{"polluted":true}}}}`);
  assert.deepEqual(Object.keys(board.lanes), [lane]);
  assert.equal(board.lanes[lane].length, 1);
  assert.equal(board.tasks.get("a").polluted, undefined);
});

test("a connection that breaks in the pause after a misfit is asked once for the board", async () => {
  const { world, board } = await live();
  const misfit = '{"type":"board.sync","boardId":"default","cursor":"c","data":{}}';
  world.socket.receive(misfit);
  world.socket.receive(misfit);
  world.sent.length = 0;
  world.socket.end(1012);
  await world.wait(1.9);
  assert.equal(board.state, "offline");
  await world.wait(0.1);
  world.socket.open();
  await world.wait(29);
  assert.deepEqual(world.sent, [{ type: "subscribe", boardId: "default", cursor: null }]);
});

test("a board that comes during such a pause is not asked for again", async () => {
  const { world, board } = await live();
  const misfit = '{"type":"board.sync","boardId":"default","cursor":"c","data":{}}';
  world.socket.receive(misfit);
  world.socket.receive(misfit);
  world.sent.length = 0;
  world.socket.receive(sync());
  await world.wait(29);
  assert.deepEqual(world.sent, []);
  assert.equal(board.state, "live");
});

test("of a plain server, a task of another board is passed over, and a lane need not be said twice", async () => {
  const { world, board } = await live();
  world.socket.receive('{"type":"board.sync","data":{"lanes":{"todo":[{"id":"a"},{"id":"b","lane":"todo"}]}}}');
  world.socket.receive('{"type":"task.created","data":{"id":"c","boardId":"other","lane":"todo"}}');
  world.socket.receive('{"type":"task.moved","data":{"id":"a","fromLane":"todo","toLane":"done"}}');
  assert.deepEqual(board.lanes, { todo: [{ id: "b", lane: "todo" }], done: [{ id: "a", lane: "done" }] });
});

test("a board that was refused is left without a word", async () => {
  const { world, board } = await live();
  world.socket.receive(refusal);
  board.unsubscribe();
  assert.deepEqual(world.sent, []);
});

test("a relay that is not reached is one error, until it is", async () => {
  const { world, relay } = await start();
  const codes = [];
  relay.on("error", ({ code }) => codes.push(code));
  for (const pause of [0.5, 1]) {
    world.socket.end(1006);
    await world.wait(pause);
  }
  assert.deepEqual(codes, ["unreachable"]);
});

test("closed while a token is awaited, it does not connect", async () => {
  let answer;
  const { world, relay } = await start({ token: () => new Promise((resolve) => (answer = resolve)) });
  relay.close();
  answer("late");
  await settled();
  assert.deepEqual(world.sockets, []);
});

test("too many messages: what was not heard is said again", async () => {
  const { world, relay } = await start();
  world.socket.open();
  const fresh = relay.authenticate("fresh");
  world.sent.length = 0;
  world.socket.receive('{"type":"error","data":{"code":"too_many_messages","message":"slower"}}');
  await assert.rejects(fresh, { code: "too_many_messages" });
  await world.wait(2);
  assert.deepEqual(world.sent, [{ type: "subscribe", boardId: "default", cursor: null }]);
});

test("a connection that was given up is heard no more", async () => {
  const { world, board } = await live();
  const old = world.socket;
  await world.wait(60);
  await world.wait(0.5);
  world.socket.open();
  world.socket.receive(batch(created("a")));
  old.receive(batch({ type: "task.deleted", data: { id: "a" } }));
  old.end(4003);
  assert.equal(board.state, "live");
  assert.equal(board.tasks.size, 1);
});

test("an attempt that is not answered within ten seconds has failed", async () => {
  const { world, board } = await start();
  await world.wait(10);
  assert.equal(board.state, "offline");
  await world.wait(0.5);
  assert.equal(world.sockets.length, 2);
});

test("a network that comes back is tried at once, one that goes is not", async () => {
  browser();
  const { world } = await live();
  world.socket.end(1006);
  window.dispatchEvent(new Event("offline"));
  await settled();
  assert.equal(world.sockets.length, 1);
  window.dispatchEvent(new Event("online"));
  await settled();
  assert.equal(world.sockets.length, 2);
  await world.wait(9);
  assert.equal(world.sockets.length, 2);
});

test("a page that wakes asks for a sign of life, and cuts a dead link after five seconds", async () => {
  browser();
  const { world, board } = await live();
  document.visibilityState = "hidden";
  document.dispatchEvent(new Event("visibilitychange"));
  assert.deepEqual(world.sent, []);
  document.visibilityState = "visible";
  document.dispatchEvent(new Event("visibilitychange"));
  assert.deepEqual(world.sent.splice(0), [PING]);
  world.socket.receive('{"type":"pong"}');
  await world.wait(5);
  assert.equal(board.state, "live");
  document.dispatchEvent(new Event("visibilitychange"));
  await world.wait(5);
  assert.equal(board.state, "offline");
});

test("a board that takes minutes comes in the end, and is not cut off because its page is shown again", async () => {
  browser();
  const { world, board } = await start();
  const seconds = [];
  while (seconds.length < 4) {
    world.socket.open();
    const [socket, began] = [world.socket, world.now];
    globalThis.document.dispatchEvent(new Event("visibilitychange"));
    while (socket.state === "open") await world.wait(1);
    seconds.push((world.now - began) / 1000);
    while (world.socket === socket) await world.wait(1);
  }
  assert.deepEqual(seconds, [30, 60, 120, 240]);
  const { socket } = world;
  socket.open();
  await world.wait(400);
  socket.receive(sync());
  assert.equal(board.state, "live");
  await world.wait(90);
  assert.equal(socket.state, "closed", "a dead link is noticed as soon as ever");
});

test("after close nothing is left: no timer, no listener, no reconnect", async () => {
  browser();
  const { world, relay } = await live();
  relay.close();
  window.dispatchEvent(new Event("online"));
  await settled();
  assert.deepEqual(world.timers, []);
  assert.equal(world.sockets.length, 1);
  assert.throws(() => relay.subscribe("default"), { code: "closed" });
});

test("a page that is left closes its connection, and resumes when it is shown again", async () => {
  browser();
  const { world, board } = await live();
  window.dispatchEvent(new Event("pagehide"));
  assert.deepEqual([world.socket.closedByClient, board.state, world.timers], [true, "offline", []]);
  window.dispatchEvent(new Event("online"));
  await world.wait(60);
  assert.equal(world.sockets.length, 1);
  document.visibilityState = "hidden";
  window.dispatchEvent(new Event("pageshow"));
  await settled();
  world.socket.open();
  assert.deepEqual(world.sent, [{ type: "subscribe", boardId: "default", cursor: "c1" }]);
});

test("a page that is left while it waits for the next attempt makes none until it is shown again", async () => {
  browser();
  const { world } = await live();
  world.socket.end(1006);
  window.dispatchEvent(new Event("pagehide"));
  await world.wait(60);
  assert.equal(world.sockets.length, 1);
  window.dispatchEvent(new Event("pageshow"));
  await settled();
  assert.equal(world.sockets.length, 2);
});

test("whoever waits for a transaction is answered alike, and a wait ends with its signal, its board or the relay", async () => {
  const { world, relay, board } = await live();
  const other = relay.subscribe("default");
  const giving = new AbortController();
  const given = board.includes(735n, { signal: giving.signal });
  const alike = [board.includes("735"), board.includes(735), other.includes("735")];
  assert.deepEqual(world.sent.splice(0), [{ type: "includes", boardId: "default", xid: "735" }]);
  giving.abort(new Error("enough"));
  await assert.rejects(given, { message: "enough" });
  world.socket.receive(JSON.stringify({ type: "included", data: { boardId: "default", xid: "735" } }));
  await Promise.all(alike);
  const left = other.includes("736");
  other.unsubscribe();
  await assert.rejects(left, { code: "unsubscribed", boardId: "default" });
  await assert.rejects(other.includes("736"), { code: "unsubscribed" });
  await assert.rejects(board.includes("736", { signal: giving.signal }), { message: "enough" });
  for (const bad of ["", "x", "-1", "1.5", 2 ** 60, null]) assert.throws(() => board.includes(bad), TypeError);
  const closed = board.includes("737");
  relay.close();
  await assert.rejects(closed, { code: "closed" });
  await assert.rejects(board.includes("737"), { code: "unsubscribed" });
});

test("subscriptions to one board select the same, and what are no names is refused", async () => {
  const { relay } = await live();
  assert.throws(() => relay.subscribe("default", { lanes: ["todo"] }), { code: "other_selection", boardId: "default" });
  relay.subscribe("default", { lanes: undefined, columns: null });
  for (const lanes of ["todo", [7], {}]) assert.throws(() => relay.subscribe("other", { lanes }), TypeError);
  assert.throws(() => relay.subscribe("other", { tasks: [{}] }), { message: /^tasks is no array of strings or numbers or/ });
});
