// Follows boards with the JavaScript client, all on one connection, for the torture: `node follow.mjs CLIENT BOARD…`,
// the client a file. What it is told comes on stdin and what it tells goes to stdout, each as a line of JSON.
//
// Told:  {"url": …}         the relay for the attempt that was asked about
//        {"tear": n}        tear the connection after so many more messages
//        {"tear": "part"}   or after a part of a batch that is not its last
//        {"show": board}
// Tells: {"asks": "url"}    before each attempt
//        {"torn": true}
//        {"board", "change"}
//        {"board", "shown": {"tasks", "lanes"}}
//
// All that it tells of a board is in order, so what is shown is what the changes before it must have led to.

import { createInterface } from "node:readline";
import WebSocket from "../acceptance/guide/node_modules/ws/wrapper.mjs";

const [program, ...names] = process.argv.slice(2);
const { connect } = await import(program);
const tell = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

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
  tell({ torn: true });
}

// Asked for a token before each attempt, it gives none, but learns where to go.
async function token() {
  url = await new Promise((resolve) => {
    attempt = resolve;
    tell({ asks: "url" });
  });
}

const relay = connect("ws://relay.invalid", { WebSocket: Torn, token });
const boards = new Map(names.map((name) => [name, relay.subscribe(name)]));
for (const [name, board] of boards) {
  // A board.sync says only that there is another board, so that is told with it.
  const whole = (type) => (type === "board.sync" ? { tasks: [...board.tasks.values()] } : {});
  board.on("change", (change) => tell({ board: name, change: { ...change, ...whole(change.type) } }));
}

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const told = JSON.parse(line);
    if ("url" in told) attempt(told.url);
    else if ("tear" in told) {
      fuse = told.tear;
      if (fuse === 0) burn();
    } else {
      const { tasks, lanes } = boards.get(told.show);
      tell({ board: told.show, shown: { tasks: [...tasks.values()], lanes } });
    }
  })
  .on("close", () => process.exit());
