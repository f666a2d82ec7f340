/** The types of client.js. */

/** An id as the relay sends it. In any column, an integer that a JavaScript number cannot hold exactly is a bigint. */
export type TaskId = string | number | bigint;

/** What every row has. Your own type for rows, an interface or an alias, must have it too. */
export interface AnyTask {
  readonly id: TaskId;
  readonly lane?: unknown;
}

/** A row of any table: column names in camelCase. */
export interface Task extends AnyTask {
  readonly id: TaskId;
  readonly lane: unknown;
  readonly [column: string]: unknown;
}

/** The state of the connection. After the first attempt, `"offline"` whenever there is none, also during attempts. */
export type RelayState = "connecting" | "live" | "offline";

/** The state of a board: `"live"` when it is up to date, `"offline"` also if it was refused or unsubscribed from. */
export type BoardState = "connecting" | "catching up" | "live" | "offline";

/** One change, which the board already includes. The objects of its tasks are never modified afterwards. */
export type Change<T extends AnyTask = Task> =
  | BoardSync
  | TaskCreated<T>
  | TaskUpdated<T>
  | TaskMoved<T>
  | TaskDeleted<T>;

/** The whole board was replaced. */
export interface BoardSync {
  readonly type: "board.sync";
  /** Why the board was sent whole when changes were asked for: see the clients' guide. */
  readonly reason: string | undefined;
}

interface OfATask {
  readonly id: TaskId;
  /** The same for all changes that became visible together; undefined from a server without cursors. */
  readonly batch?: number;
}

export interface TaskCreated<T extends AnyTask = Task> extends OfATask {
  readonly type: "task.created";
  readonly task: T;
}

export interface TaskUpdated<T extends AnyTask = Task> extends OfATask {
  readonly type: "task.updated";
  readonly before: T;
  readonly task: T;
  /** The columns that changed, and only those. */
  readonly changes: Partial<T>;
}

/** The task went to the end of another lane. A `task.updated` with the same lane follows in the same batch. */
export interface TaskMoved<T extends AnyTask = Task> extends OfATask {
  readonly type: "task.moved";
  readonly before: T;
  readonly task: T;
  readonly fromLane: T["lane"];
  readonly toLane: T["lane"];
}

export interface TaskDeleted<T extends AnyTask = Task> extends OfATask {
  readonly type: "task.deleted";
  readonly before: T;
  readonly task: undefined;
}

/**
 * What went wrong. Codes are those of the clients' guide, and these:
 * - `"closed"`: the client has stopped. The relay refused the connection or ended it for good (see `closeCode`), the
 *   token or the address is invalid, or close() was called.
 * - `"unreachable"`: an attempt to connect failed. The client keeps trying, and reports this once until one succeeds.
 * - `"unsubscribed"`: you unsubscribed before the board arrived.
 * - `"other_selection"`: this connection follows the board with another selection already.
 * - `"unusable_board"`: the relay's messages about the board contradict each other.
 */
export class RelayError extends Error {
  constructor(code: string, message: string, about?: { boardId?: string; closeCode?: number });
  readonly code: string;
  readonly boardId?: string;
  readonly closeCode?: number;
}

/**
 * One subscription to a board. While it is live, its tasks are those in the database. It changes when messages arrive,
 * never while your code runs.
 */
export interface Board<T extends AnyTask = Task> {
  readonly id: string;
  /** The tasks by id. */
  readonly tasks: ReadonlyMap<TaskId, T>;
  /** The tasks of each lane in order. As long as a lane does not change, its array is the same object. */
  readonly lanes: Readonly<Record<string, readonly T[]>>;
  /** The keys of `lanes` in their order on the board. (An object puts keys that are integers first.) */
  readonly laneOrder: readonly string[];
  /** The lanes' names if lanes are rows of a table, else null. */
  readonly laneNames: Readonly<Record<string, string | null>> | null;
  readonly state: BoardState;
  /** Resolves when the board has arrived. Rejects if it is refused, you end it, or the client stops before that. */
  readonly ready: Promise<void>;

  /** Calls the listener at each change. Returns a function that removes it. */
  on(event: "change", listener: (change: Change<T>) => void): () => void;
  on(event: "state", listener: (state: BoardState) => void): () => void;
  on(event: "error", listener: (error: RelayError) => void): () => void;

  /**
   * Resolves once the board includes the effects of a transaction, if it has any: `xid` is what `pg_current_xact_id()`
   * returned within it. Without a connection, it waits for one. Rejects with a RelayError. Its code is
   * `"not_included"` if the transaction had not ended after half a minute, or if the database has been replaced;
   * otherwise it is the error of the board or of the connection. Throws TypeError if `xid` is not a transaction id.
   */
  includes(xid: string | number | bigint, options?: IncludesOptions): Promise<void>;

  /** Ends this subscription, not others to the same board. Its tasks stay as they are. */
  unsubscribe(): void;
}

/** A connection to a relay, which is reopened whenever it is lost. */
export interface Relay {
  readonly state: RelayState;

  /**
   * Follows a board. Each call returns a subscription of its own; the relay sends the board once for all of them.
   * Throws TypeError if there is no WebSocket class.
   */
  subscribe<T extends AnyTask = Task>(boardId: string, options?: SubscribeOptions): Board<T>;

  /** Presents a new token. It replaces the old one once the relay has accepted it, or at once if not connected. */
  authenticate(token: string): Promise<void>;

  on(event: "state", listener: (state: RelayState) => void): () => void;
  /** Gets the errors of the boards, too. */
  on(event: "error", listener: (error: RelayError) => void): () => void;

  /** Ends everything. The boards stay as they are. */
  close(): void;
}

/** A part of a board. A field that is absent selects everything. */
export interface BoardSelection {
  /** Only tasks in these lanes, by their keys in `lanes`. One that leaves them is deleted, one that enters is created. */
  lanes?: readonly string[] | undefined;
  /** Only these columns of each task, and always `id`, `boardId` and `lane`. */
  columns?: readonly string[] | undefined;
  /** Only tasks with these ids. */
  tasks?: readonly TaskId[] | undefined;
}

export interface SubscribeOptions extends BoardSelection {
  /**
   * Limits the wait for the board, for example `AbortSignal.timeout(5000)`: if it is aborted before the board has
   * arrived, the subscription ends and `ready` rejects with the signal's reason. Later it has no effect.
   */
  signal?: AbortSignal | undefined;
}

export interface IncludesOptions {
  /** Limits the wait: if it is aborted first, the promise rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
}

export type Token = string | null | undefined;

export interface Options {
  /** The token, or a function that is called for one before each attempt to connect; it has 30 seconds to answer. */
  token?: Token | (() => Token | Promise<Token>);
  /** The WebSocket class, where there is no global one. */
  WebSocket?: new (url: string, protocols: string[]) => unknown;
  /** For tests: a clock in milliseconds, and random numbers from 0 to 1. */
  clock?: Clock;
}

export interface Clock {
  setTimeout(callback: () => void, milliseconds: number): unknown;
  clearTimeout(timer: unknown): void;
  now(): number;
  random(): number;
}

/**
 * Returns a client of a relay, which connects when you subscribe to the first board. Throws TypeError if the address or
 * the token is invalid.
 */
export function connect(url: string, options?: Options): Relay;
