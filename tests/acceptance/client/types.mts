// What a program in TypeScript can say of the client, and what the compiler must find wrong. Never run.

import { connect, RelayError, type AnyTask, type Board, type BoardSelection, type Change, type Task, type TaskId } from "pg-change-relay-client";
import { useBoard, useTask, type BoardView } from "pg-change-relay-client/react";
import { WebSocket as PackageWs } from "ws";

interface Card {
  id: string;
  lane: string;
  title: string;
  estimatedHours: number | null;
}

// Types that others declare: what an ORM generates, what a schema infers, a class.
type Row = { id: bigint; lane: "todo" | "done" | null; createdAt: string };
type Inferred = Readonly<{ id: number; lane?: string | undefined; tags: readonly string[] }>;
declare class Model {
  id: string;
  lane: string;
  save(): Promise<void>;
}
interface Extended extends Task {
  readonly id: string;
}

const relay = connect("wss://relay.example.com", { token: async () => "token", WebSocket });
const plain: Board = relay.subscribe("default");
const board = relay.subscribe<Card>("default", { signal: AbortSignal.timeout(5000) });
relay.subscribe<Card>("e", { lanes: ["todo"], columns: ["title"], tasks: ["a", 7, 7n] });
const others = [relay.subscribe<Row>("a"), relay.subscribe<Inferred>("b"), relay.subscribe<Model>("c")] as const;
const extended: string | undefined = relay.subscribe<Extended>("d").tasks.get("a")?.id;
const created: Date[] = [...others[0].tasks.values()].map((row) => new Date(row.createdAt));
connect("ws://localhost:4002", { WebSocket: PackageWs, token: undefined });

function count<T extends AnyTask>(board: Board<T>): number {
  return board.tasks.size;
}

function describe(change: Change<Card>): string {
  switch (change.type) {
    case "board.sync":
      return change.reason ?? "here it is";
    case "task.created":
      return change.task.title;
    case "task.updated":
      return `${change.before.title} ${change.changes.title ?? ""} ${change.batch ?? 0}`;
    case "task.moved":
      return change.fromLane.concat(change.toLane);
    case "task.deleted":
      return change.before.title;
  }
}

const end: () => void = board.on("change", (change) => console.log(describe(change)));
board.on("state", (state) => console.log(state === "catching up"));
board.on("error", (error: RelayError) => console.log(error.code, error.boardId?.length, error.closeCode));
relay.on("state", (state) => console.log(state === "offline"));
await board.ready;
await relay.authenticate("fresh");
await Promise.all([board.includes("735"), board.includes(735n, { signal: AbortSignal.timeout(5000) }), plain.includes(735)]);
const titles: string[] = (board.lanes["todo"] ?? []).map(({ title }) => title);
const ids: TaskId[] = [...plain.tasks.keys()];
end();
board.unsubscribe();
relay.close();
console.log(titles, ids, extended, created, count(board), count(plain), board.tasks.get("a")?.estimatedHours, relay.state, board.state);

const view: BoardView<Card> = useBoard<Card>(relay, "default");
const cards: readonly Card[] | undefined = view.lanes["todo"];
const card: Card | undefined = useTask<Card>(relay, "default", "a");
const unknownTitle: unknown = useTask(relay, "default", 7n, { tasks: [7n] })?.["title"];
const part: BoardView<Card> = useBoard<Card>(relay, "default", { lanes: ["todo"], columns: undefined } satisfies BoardSelection);
console.log(view.state === "live", view.error?.code, cards, card?.title, unknownTitle);

// @ts-expect-error  a lane is no number
useBoard(relay, "default", { lanes: [7] });
// @ts-expect-error a hook needs a relay
useBoard("ws://localhost:4002", "default");
// @ts-expect-error what is shown is the board's to change
view.lanes["todo"]?.push({});
// @ts-expect-error a board is asked for by name
relay.subscribe(7);
// @ts-expect-error there is no such event
board.on("changed", () => {});
// @ts-expect-error there is no such state
board.on("state", (state) => state === "online");
// @ts-expect-error the board is the relay's to change
board.tasks.set("a", {});
// @ts-expect-error and so are its lanes
board.lanes["todo"]?.push({});
// @ts-expect-error and the tasks of any table
plain.tasks.get("a")!.lane = "done";
// @ts-expect-error what has no id is no task
relay.subscribe<{ lane: string }>("default");
// @ts-expect-error a column of any table may be anything
const title: string = plain.tasks.get("a")?.["title"];
// @ts-expect-error a token is text
connect("ws://localhost:4002", { token: 7 });
// @ts-expect-error what is deleted is not there afterwards
board.on("change", (change) => change.type === "task.deleted" && change.task.title);
