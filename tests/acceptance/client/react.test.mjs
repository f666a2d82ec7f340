// The hooks in an environment like React Native's: no window, no document, and a renderer that has no DOM.

import assert from "node:assert/strict";
import { test } from "node:test";
import { connect } from "pg-change-relay-client";
import { useBoard, useTask } from "pg-change-relay-client/react";
import { StrictMode, act, createElement, useState } from "react";
import { create } from "react-test-renderer";
import * as copied from "../../../relay/client/js/client.js";
import { World, settled } from "../../conformance/world.mjs";

globalThis.IS_REACT_ACT_ENVIRONMENT = true;

const message = (type, more) => JSON.stringify({ type, boardId: "default", cursor: "c", ...more });
const sync = (...todo) => message("board.sync", { data: { lanes: { todo, done: [] } } });
const batch = (...data) => message("batch", { data });
const created = (id) => ({ type: "task.created", data: { id, lane: "todo" } });
const updated = (id, changes) => ({ type: "task.updated", data: { id, changes } });
const refusal = JSON.stringify({ type: "error", data: { code: "not_allowed", message: "no", boardId: "default" } });

/** Renders a component, once the connection is open, and returns what was rendered each time. */
async function shown(component, wrap = (element) => element) {
  assert.equal(globalThis.window ?? globalThis.document, undefined);
  const world = new World();
  const relay = connect("ws://relay.test", world);
  const renders = [];
  let root;
  await act(async () => {
    root = create(wrap(createElement(() => void renders.push(component(relay)))));
    await settled();
  });
  const receive = (...texts) =>
    act(async () => {
      for (const text of texts) world.socket.receive(text);
      await settled();
    });
  await act(async () => world.socket.open());
  return { world, root, renders, receive };
}

/** Renders components of which each shows a part of the board, under StrictMode; returns what they show and how to change that. */
async function parts(...first) {
  return partsOf(connect, ...first);
}

async function partsOf(connect, ...first) {
  let change;
  function Part({ lane }) {
    const selection = { lanes: [lane, lane], columns: undefined }; // made for each render
    const { lanes, state, error } = useBoard(relay, "default", selection);
    const task = useTask(relay, "default", "a", { lanes: [lane] });
    return `${Object.keys(lanes)} ${state} ${error?.code ?? ""} ${task?.title ?? ""}`;
  }
  function All() {
    const [lanes, setLanes] = useState(first);
    change = setLanes;
    return lanes.map((lane, key) => lane && createElement(Part, { lane, key }));
  }
  const world = new World();
  const relay = connect("ws://relay.test", world);
  const errors = [];
  relay.on("error", ({ code }) => errors.push(code));
  let root;
  /** Returns what was asked for, and answers pings, after which a part counts. */
  const asked = () => {
    const sent = world.sent.splice(0);
    for (const { type } of sent) if (type === "ping") world.socket.receive('{"type":"pong"}');
    return sent.filter(({ type }) => type !== "ping").map(({ type, lanes }) => [type, lanes?.join()]);
  };
  const show = (...lanes) => act(async () => change(lanes));
  const receive = (lane, ...tasks) =>
    act(async () => world.socket.receive(message("board.sync", { data: { lanes: { [lane]: tasks } } })));
  await act(async () => {
    root = create(createElement(StrictMode, null, createElement(All)));
    await settled();
  });
  await act(async () => world.socket?.open());
  return { asked, show, receive, errors, relay, shown: () => [root.toJSON()].flat() };
}

const titles = ({ lanes }) => lanes.todo?.map(({ id, title }) => `${id} ${title ?? ""}`);

test("a board is empty, comes, changes, and is the same object while nothing changes", async () => {
  const { renders, receive, world } = await shown((relay) => useBoard(relay, "default"));
  assert.deepEqual(renders[0], { lanes: {}, state: "connecting", error: undefined });
  await receive(sync({ id: "a", lane: "todo" }));
  const board = renders.at(-1);
  assert.deepEqual([titles(board), board.state], [["a "], "live"]);
  const count = renders.length;
  await receive(batch());
  assert.equal(renders.length, count);
  await receive(batch(updated("a", { title: "A" })));
  assert.deepEqual(titles(renders.at(-1)), ["a A"]);
  assert.equal(renders.at(-1).lanes.done, board.lanes.done);
  assert.deepEqual(titles(board), ["a "]);
  assert.deepEqual(world.sockets.map(({ options }) => options), [[]]); // React Native warns of options
});

test("a batch is rendered whole and once, whatever number of changes it has", async () => {
  const { renders, receive } = await shown((relay) => titles(useBoard(relay, "default")));
  await receive(sync());
  const count = renders.length;
  await receive(batch(created("a"), created("b"), updated("a", { title: "A" })));
  assert.deepEqual(renders.slice(count), [["a A", "b "]]);
});

test("a task is rendered again only when it has changed", async () => {
  const { renders, receive } = await shown((relay) => useTask(relay, "default", "a")?.title);
  await receive(sync({ id: "a", title: "A" }, { id: "b" }));
  await receive(batch(updated("b", { title: "B" }), created("c")));
  await receive(batch(updated("a", { title: "AA" })));
  await receive(batch({ type: "task.deleted", data: { id: "a" } }));
  assert.deepEqual(renders, [undefined, "A", "AA", undefined]);
});

test("a refusal is shown, and gone when the board is live", async () => {
  const { renders, receive } = await shown((relay) => useBoard(relay, "default"));
  await receive(refusal);
  assert.deepEqual([renders.at(-1).error.code, renders.at(-1).state], ["not_allowed", "offline"]);
  await receive(JSON.stringify({ type: "authenticated" }), sync());
  assert.deepEqual([renders.at(-1).error, renders.at(-1).state], [undefined, "live"]);
});

test("components share a subscription, StrictMode makes no second one, and the last to go ends it", async () => {
  let show;
  function Both({ relay }) {
    const [count, setCount] = useState(2);
    show = setCount;
    return Array.from({ length: count }, (_, key) => createElement(One, { relay, key }));
  }
  const renders = [];
  function One({ relay }) {
    renders.push(titles(useBoard(relay, "default"))?.join() ?? null);
    return renders.at(-1);
  }
  const world = new World();
  const relay = connect("ws://relay.test", world);
  let root;
  await act(async () => {
    root = create(createElement(StrictMode, null, createElement(Both, { relay })));
    await settled();
  });
  await act(async () => world.socket.open());
  await act(async () => world.socket.receive(sync({ id: "a", lane: "todo" })));
  assert.deepEqual(root.toJSON(), ["a ", "a "]);
  const change = (count) => act(async () => show(count));
  assert.deepEqual(world.sent.map(({ type }) => type), ["subscribe"]);
  await change(1);
  assert.equal(world.sent.length, 1);
  await change(0);
  assert.deepEqual(world.sent.map(({ type }) => type), ["subscribe", "unsubscribe"]);
  renders.length = 0;
  await change(1);
  assert.deepEqual(world.sent.map(({ type }) => type), ["subscribe", "unsubscribe", "subscribe"]);
  assert.deepEqual([...new Set(renders)], [null]); // nothing of what it was before
});

test("a part is followed by one subscription, however often it is rendered, and another takes its place", async () => {
  const { asked, show, receive, shown, errors } = await parts("todo", "todo");
  assert.deepEqual(asked(), [["subscribe", "todo"]]);
  await receive("todo", { id: "a", title: "A", lane: "todo" });
  assert.deepEqual(shown(), ["todo live  A", "todo live  A"]);
  await show("todo", "todo", "todo");
  assert.deepEqual(asked(), []);
  await show("done", "done", "done");
  assert.deepEqual(asked(), [["unsubscribe", undefined], ["subscribe", "done"]]);
  await receive("done");
  assert.deepEqual([shown()[0], errors], ["done live  ", []]);
});

test("of two parts of a board, one is followed, and the other as soon as that is not shown", async () => {
  const { asked, show, receive, shown, errors } = await parts("todo");
  await receive("todo");
  await show("todo", "done");
  assert.deepEqual(shown(), ["todo live  ", " offline other_selection "]);
  assert.deepEqual(errors, ["other_selection", "other_selection"]); // StrictMode subscribes twice
  await show("todo", "done", "done");
  assert.equal(errors.length, 2);
  asked();
  await show(null, "done");
  assert.deepEqual(asked(), [["unsubscribe", undefined], ["subscribe", "done"]]);
  await receive("done");
  assert.deepEqual(shown(), ["done live  "]);
  await show();
  assert.deepEqual(asked(), [["unsubscribe", undefined]]);
});

test("of a connection that was closed, a component says so, also if another copy of the client made it", async () => {
  for (const made of [connect, copied.connect]) {
    const { show, shown, relay } = await partsOf(made);
    relay.close();
    await show("todo");
    assert.deepEqual(shown(), [" offline closed "]);
  }
});
