// Follows the board "default" of the relay at the given address. Prints a line of JSON for each change and each state,
// and the board when it is asked to end.

import { connect } from "../../../relay/client/js/client.js";

const WebSocket = globalThis.WebSocket ?? (await import("../guide/node_modules/ws/wrapper.mjs")).default;
const relay = connect(process.argv[2], { WebSocket });
const board = relay.subscribe("default");

const say = (line) => console.log(JSON.stringify(line));
board.on("change", ({ type, id, task }) => say({ type, id, title: task?.title }));
board.on("state", (state) => say({ state }));

process.on("SIGTERM", () => {
  relay.close();
  say({ lanes: board.lanes });
  process.exit();
});
