/** The types of react.js. */

import type { AnyTask, BoardSelection, BoardState, Relay, RelayError, Task, TaskId } from "./client.js";

/** A board as it is rendered. As long as nothing changes, it is the same object, with the same arrays. */
export interface BoardView<T extends AnyTask = Task> {
  /** The tasks of each lane in order; empty until the board has arrived. */
  readonly lanes: Readonly<Record<string, readonly T[]>>;
  readonly state: BoardState;
  /** Why the board is not live, until it is live again. */
  readonly error: RelayError | undefined;
}

/**
 * Follows a board, or the selected part of it, while the component is mounted, and rerenders the component when it
 * changes. Components with the same board and selection share one subscription. A connection follows only one part of
 * a board: for a second, `error` has the code `"other_selection"`. Selections are compared by value, so you can create
 * one at each render. On a server, the board is empty and no connection is made.
 */
export function useBoard<T extends AnyTask = Task>(
  relay: Relay,
  boardId: string,
  selection?: BoardSelection,
): BoardView<T>;

/**
 * Returns one task of a board, or undefined while there is none with that id, and rerenders only when that task
 * changes. It shares the subscription of `useBoard` with the same selection. On a page that shows only one task, select
 * just that: `{ tasks: [taskId] }`.
 */
export function useTask<T extends AnyTask = Task>(
  relay: Relay,
  boardId: string,
  taskId: TaskId,
  selection?: BoardSelection,
): T | undefined;
