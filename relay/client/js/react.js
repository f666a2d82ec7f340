"use client";

/**
 * Boards in React: hooks that follow a board, or a part of it, while a component is mounted.
 *
 *     const relay = connect("ws://localhost:4002");
 *
 *     function Todo() {
 *       const { lanes, state } = useBoard(relay, "default", { lanes: ["todo"] });
 *       …
 *     }
 *
 * Rules:
 * - Components with the same board and selection share one subscription, from the first mount to the last unmount.
 * - Selections are compared by value, so one can be created at each render.
 * - A connection follows one part of a board. Of two parts, the first is followed until no component shows it.
 * - A batch is rendered whole: React reads the board when it renders, and the board always contains whole batches.
 * - A component rerenders only when what it shows has changed.
 * - Rendering on a server makes no connection and keeps nothing. The first render is empty there and in the browser.
 */

import { useCallback, useSyncExternalStore } from "react";
import { selected } from "./client.js";

const EMPTY = Object.freeze({ lanes: Object.freeze({}), state: "connecting", error: undefined });

/** The board, or the selected part of it: its lanes, its state, and its error, if any. */
export function useBoard(relay, boardId, selection) {
  return useShared(relay, boardId, selection, (shared) => shared?.view() ?? EMPTY, EMPTY);
}

/** One task of what useBoard returns for the same selection, or undefined while there is none with that id. */
export function useTask(relay, boardId, taskId, selection) {
  return useShared(relay, boardId, selection, (shared) => shared?.task(taskId), undefined);
}

function useShared(relay, boardId, selection, shown, empty) {
  const wanted = selected(selection ?? {});
  const key = JSON.stringify([boardId, wanted]);
  const subscribe = useCallback(
    (listener) => (found(relay, key) ?? new SharedBoard(relay, boardId, wanted, key)).subscribe(listener),
    [relay, key],
  );
  return useSyncExternalStore(
    subscribe,
    () => shown(found(relay, key)),
    () => empty,
  );
}

const sharedBoards = new WeakMap(); // relay -> key -> SharedBoard, those that are shown

const found = (relay, key) => sharedBoards.get(relay)?.get(key);

/** A board, or a part of it, shared by all components that show it. */
class SharedBoard {
  #relay;
  #boardId;
  #selection;
  #key;
  #board = null;
  #listeners = new Set();
  #view = EMPTY;
  #error;

  constructor(relay, boardId, selection, key) {
    this.#relay = relay;
    this.#boardId = boardId;
    this.#selection = selection;
    this.#key = key;
  }

  subscribe = (listener) => {
    if (this.#listeners.size === 0 && !this.#board) this.#begin();
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
      queueMicrotask(this.#endIfUnused); // StrictMode, and a component that takes another's place, subscribe at once again
    };
  };

  /** Returns the same object as long as nothing in it has changed. */
  view = () => {
    const { lanes, state } = this.#board ?? (this.#error ? { lanes: EMPTY.lanes, state: "offline" } : EMPTY);
    const { lanes: shownLanes, state: shownState, error: shownError } = this.#view;
    if (lanes !== shownLanes || state !== shownState || this.#error !== shownError) {
      this.#view = Object.freeze({ lanes, state, error: this.#error });
    }
    return this.#view;
  };

  task(id) {
    return this.#board?.tasks.get(id);
  }

  #begin() {
    for (const other of this.#others()) other.#endIfUnused(); // another part, which the component has just left
    this.#error = undefined;
    try {
      this.#follow();
    } catch (error) {
      if (error?.name !== "RelayError") throw error; // its class may be that of another copy of the client
      this.#error = error;
      this.#relay._emit("error", error);
    }
    if (!sharedBoards.has(this.#relay)) sharedBoards.set(this.#relay, new Map());
    sharedBoards.get(this.#relay).set(this.#key, this);
  }

  #follow() {
    this.#board = this.#relay.subscribe(this.#boardId, this.#selection);
    this.#board.on("change", this.#changed);
    this.#board.on("state", (state) => {
      if (state === "live") this.#error = undefined;
      this.#changed();
    });
    this.#board.on("error", (error) => {
      this.#error = error;
      this.#changed();
    });
  }

  #changed = () => {
    for (const listener of [...this.#listeners]) listener();
  };

  #endIfUnused = () => {
    if (this.#listeners.size || found(this.#relay, this.#key) !== this) return;
    sharedBoards.get(this.#relay).delete(this.#key);
    this.#board?.unsubscribe();
    this.#board = null;
    for (const other of this.#others()) other.#beginIfNot();
  };

  #beginIfNot() {
    if (this.#board || !this.#listeners.size) return;
    this.#begin();
    this.#changed();
  }

  /** Other parts of the same board. */
  #others() {
    const all = [...(sharedBoards.get(this.#relay)?.values() ?? [])];
    return all.filter((other) => other !== this && other.#boardId === this.#boardId);
  }
}
