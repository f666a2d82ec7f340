/** The types of react.js. */

import type { AnyTask, BoardSelection, BoardState, Relay, RelayError, Task, TaskId } from "./client.js";

/** A board as it is shown. The same object, and the same arrays in it, for as long as nothing has changed. */
export interface BoardView<T extends AnyTask = Task> {
  /** The tasks of each lane in order; none before the board has come. */
  readonly lanes: Readonly<Record<string, readonly T[]>>;
  readonly state: BoardState;
  /** Why the board is not followed, until it is live again. */
  readonly error: RelayError | undefined;
}

/**
 * Follows a board, or the selected part of it, for as long as the component is mounted, and renders it again when it has
 * changed. All components that show the same share one subscription. A connection follows one part of a board: while a
 * component shows another, `error` has the code `"other_selection"`. A selection may be made for each render: what
 * counts is what it says. While a web server renders, the board is empty and nothing is connected.
 */
export function useBoard<T extends AnyTask = Task>(
  relay: Relay,
  boardId: string,
  selection?: BoardSelection,
): BoardView<T>;

/**
 * One task of a board, undefined while there is none with that id. Renders again only when that task has changed. It
 * follows what `useBoard` follows with the same selection, so that all components of a page share it: for a page that
 * shows one task alone, select that, as `{ tasks: [taskId] }`.
 */
export function useTask<T extends AnyTask = Task>(
  relay: Relay,
  boardId: string,
  taskId: TaskId,
  selection?: BoardSelection,
): T | undefined;
