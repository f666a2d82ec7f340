// Follows boards with the JavaScript client, all on one connection, for the torture: `node follow.mjs CLIENT BOARD…`,
// the client a file. It takes orders on stdin and reports on stdout, each as a line of JSON.
//
// Orders:  {"url": …}         the relay for the attempt that was asked about
//          {"tear": n}        tear the connection after so many more messages
//          {"tear": "part"}   or after a part of a batch that is not its last
//          {"show": board}
// Reports: {"asks": "url"}    before each attempt
//          {"torn": true}
//          {"board", "change"}
//          {"board", "shown": {"tasks", "lanes"}}
//
// All reports of a board are in order, so what is shown is what the changes before it must have led to.

import { createInterface } from "node:readline";
import WebSocket from "../acceptance/guide/node_modules/ws/wrapper.mjs";

const [program, ...names] = process.argv.slice(2);
const { connect } = await import(program);
const report = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

let attempt; // resolves with the relay's address
let url;
let socket = null;
let fuse = Infinity; // messages until the connection is torn, or "part"

/** A connection to the relay of the torture's choice, which is torn when it says so. */
class Torn extends WebSocket {
  constructor(_, protocols, options) {
    super(url, protocols, options);
    socket = this;
    this.on("message", burn);
  }
}

function burn(message) {
  if (fuse === "part" ? "cursor" in JSON.parse(message) : fuse-- > 0) return;
  fuse = Infinity;
  if (socket?.readyState !== WebSocket.OPEN) return;
  socket.terminate();
  report({ torn: true });
}

// Asked for a token before each attempt, it gives none, but learns where to go.
async function token() {
  url = await new Promise((resolve) => {
    attempt = resolve;
    report({ asks: "url" });
  });
}

const relay = connect("ws://relay.invalid", { WebSocket: Torn, token });
const boards = new Map(names.map((name) => [name, relay.subscribe(name)]));
for (const [name, board] of boards) {
  // A board.sync says only that there is another board, so the tasks are reported with it.
  const whole = (type) => (type === "board.sync" ? { tasks: [...board.tasks.values()] } : {});
  board.on("change", (change) => report({ board: name, change: { ...change, ...whole(change.type) } }));
}

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const order = JSON.parse(line);
    if ("url" in order) attempt(order.url);
    else if ("tear" in order) {
      fuse = order.tear;
      if (fuse === 0) burn();
    } else {
      const { tasks, lanes } = boards.get(order.show);
      report({ board: order.show, shown: { tasks: [...tasks.values()], lanes } });
    }
  })
  .on("close", () => process.exit());
