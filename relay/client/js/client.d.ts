/** The types of client.js. */

/** An id as the relay sends it. An integer that a JavaScript number would round is a bigint, in any column. */
export type TaskId = string | number | bigint;

/** What every row has, and so every type for one, be it an interface or an alias. */
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

/** How the connection is. `"offline"` while there is none after the first attempt, also when the next is being made. */
export type RelayState = "connecting" | "live" | "offline";

/** How a board is: `"live"` when it is as the database's, `"offline"` too if it was refused or left. */
export type BoardState = "connecting" | "catching up" | "live" | "offline";

/** One change, which the board shows already. Tasks in it are never changed afterwards. */
export type Change<T extends AnyTask = Task> =
  | BoardSync
  | TaskCreated<T>
  | TaskUpdated<T>
  | TaskMoved<T>
  | TaskDeleted<T>;

/** The whole board was replaced. */
export interface BoardSync {
  readonly type: "board.sync";
  /** Why, if it is not what was asked for: see the clients' guide. */
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
 * What went wrong. Codes are those of the clients' guide, and
 * `"closed"`: waiting does not help. The relay ended the connection, see `closeCode`, or refused it; or the token or
 * the address cannot be used; or close() was called;
 * `"unreachable"`: an attempt to connect failed (reported once until one succeeds; the client goes on trying);
 * `"unsubscribed"`: the board was left before it came;
 * `"other_selection"`: the board is followed with another selection already;
 * `"unusable_board"`: what the relay sends of the board contradicts itself.
 */
export class RelayError extends Error {
  constructor(code: string, message: string, about?: { boardId?: string; closeCode?: number });
  readonly code: string;
  readonly boardId?: string;
  readonly closeCode?: number;
}

/**
 * One subscription to a board, which is as it is in the database. It may change whenever messages come, never in the
 * midst of your code.
 */
export interface Board<T extends AnyTask = Task> {
  readonly id: string;
  /** The tasks by id. */
  readonly tasks: ReadonlyMap<TaskId, T>;
  /** The tasks of each lane in order. The array of a lane that has not changed is the same as the last time. */
  readonly lanes: Readonly<Record<string, readonly T[]>>;
  /** The lanes in their order, for an object has numbers first. */
  readonly laneOrder: readonly string[];
  /** The lanes' names, where lanes are rows of a table; else null. */
  readonly laneNames: Readonly<Record<string, string | null>> | null;
  readonly state: BoardState;
  /** Resolves when the board is there; rejects if before that it is refused, left or given up, or waiting is of no use. */
  readonly ready: Promise<void>;

  /** Calls the listener at each change; returns a function that ends that. */
  on(event: "change", listener: (change: Change<T>) => void): () => void;
  on(event: "state", listener: (state: BoardState) => void): () => void;
  on(event: "error", listener: (error: RelayError) => void): () => void;

  /**
   * Resolves once the board includes a transaction: `xid` is what `pg_current_xact_id()` said within it. It may have
   * changed nothing, or have been rolled back. While there is no connection this waits. Rejects with a RelayError: its
   * code is `"not_included"` if the transaction was not over within half a minute, or if the database is another now;
   * else it is that of the board or of the connection. Throws TypeError for what is no transaction id.
   */
  includes(xid: string | number | bigint, options?: IncludesOptions): Promise<void>;

  /** Ends this subscription, not others to the same board; what it shows stays as it is. */
  unsubscribe(): void;
}

/** A connection to a relay, made again whenever it is lost. */
export interface Relay {
  readonly state: RelayState;

  /**
   * Follows a board. Each call is a subscription of its own; the relay sends the board once for all of them. Throws
   * TypeError where there is no WebSocket.
   */
  subscribe<T extends AnyTask = Task>(boardId: string, options?: SubscribeOptions): Board<T>;

  /** Presents a fresh token; kept when the relay has taken it, or at once while there is no connection. */
  authenticate(token: string): Promise<void>;

  on(event: "state", listener: (state: RelayState) => void): () => void;
  /** Hears of the boards' errors too. */
  on(event: "error", listener: (error: RelayError) => void): () => void;

  /** Ends everything. The boards stay as they are. */
  close(): void;
}

/** A part of a board. What is absent selects all. */
export interface BoardSelection {
  /** Only tasks in these lanes, by their keys in `lanes`. One that leaves them is deleted, one that enters is created. */
  lanes?: readonly string[] | undefined;
  /** Of each task only these columns, beside `id`, `boardId` and `lane`. */
  columns?: readonly string[] | undefined;
  /** Only tasks with these ids. */
  tasks?: readonly TaskId[] | undefined;
}

export interface SubscribeOptions extends BoardSelection {
  /**
   * Limits the wait for the board, say `AbortSignal.timeout(5000)`: if it is aborted before the board has come, the
   * subscription ends and `ready` rejects with the signal's reason. Later it has no effect.
   */
  signal?: AbortSignal | undefined;
}

export interface IncludesOptions {
  /** Limits the wait: if it is aborted first, the promise rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
}

export type Token = string | null | undefined;

export interface Options {
  /** The token, or what gives it before each attempt to connect. */
  token?: Token | (() => Token | Promise<Token>);
  /** The WebSocket class, where there is no global one. */
  WebSocket?: new (url: string, protocols: string[]) => unknown;
  /** For tests: time in milliseconds, and chance from 0 to 1. */
  clock?: Clock;
}

export interface Clock {
  setTimeout(callback: () => void, milliseconds: number): unknown;
  clearTimeout(timer: unknown): void;
  now(): number;
  random(): number;
}

/**
 * A connection to a relay, made when the first board is subscribed to. Throws TypeError for what is no address, and for a
 * token that cannot be presented.
 */
export function connect(url: string, options?: Options): Relay;
