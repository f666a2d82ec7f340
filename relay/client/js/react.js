"use client";

/**
 * Boards in React: hooks that follow a board for as long as a component shows it.
 *
 *     const relay = connect("ws://localhost:4002");
 *
 *     function Todo() {
 *       const { lanes, state } = useBoard(relay, "default");
 *       …
 *     }
 *
 * Rules:
 * - All components that show a board share one subscription. It begins with the first and ends with the last.
 * - A batch is rendered whole: React reads the board when it renders, and the board holds whole batches only.
 * - A component renders again only when what it shows has changed.
 * - Nothing is connected while a web server renders. The page begins empty there, and in the browser.
 */

import { useSyncExternalStore } from "react";

const EMPTY = Object.freeze({ lanes: Object.freeze({}), state: "connecting", error: undefined });

/** The board: its lanes, its state, and the error that it has, if any. */
export function useBoard(relay, boardId) {
  const shared = sharedBoard(relay, boardId);
  return useSyncExternalStore(shared.subscribe, shared.view, () => EMPTY);
}

/** One task of a board, undefined while there is none with that id. */
export function useTask(relay, boardId, taskId) {
  const shared = sharedBoard(relay, boardId);
  return useSyncExternalStore(
    shared.subscribe,
    () => shared.task(taskId),
    () => undefined,
  );
}

const sharedBoards = new WeakMap(); // relay -> boardId -> SharedBoard

function sharedBoard(relay, boardId) {
  const boards = sharedBoards.get(relay) ?? new Map();
  sharedBoards.set(relay, boards);
  if (!boards.has(boardId)) boards.set(boardId, new SharedBoard(relay, boardId, () => boards.delete(boardId)));
  return boards.get(boardId);
}

/** A board for all components that show it. */
class SharedBoard {
  #relay;
  #boardId;
  #forget;
  #board = null;
  #listeners = new Set();
  #view = EMPTY;
  #error;

  constructor(relay, boardId, forget) {
    this.#relay = relay;
    this.#boardId = boardId;
    this.#forget = forget;
  }

  subscribe = (listener) => {
    if (!this.#board) this.#begin();
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
      queueMicrotask(this.#endIfUnused); // StrictMode, and a component that takes another's place, subscribe at once again
    };
  };

  /** The same object for as long as nothing in it has changed. */
  view = () => {
    if (!this.#board) return this.#view;
    const { lanes, state } = this.#board;
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
    this.#board = this.#relay.subscribe(this.#boardId);
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
    if (this.#listeners.size || !this.#board) return;
    this.#forget();
    this.#board.unsubscribe();
    this.#board = null;
  };
}
