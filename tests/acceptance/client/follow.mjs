// Follows the board "default" of the relay at the given address, and prints a line of JSON for each change and state,
// and for each state the board.

import { connect } from "../../../relay/static/client.js";

const WebSocket = globalThis.WebSocket ?? (await import("../guide/node_modules/ws/wrapper.mjs")).default;
const board = connect(process.argv[2], { WebSocket }).subscribe("default");

const say = (line) => console.log(JSON.stringify(line));
board.on("change", ({ type, id, task, reason }) => say({ type, id, title: task?.title, reason, lanes: board.lanes }));
board.on("state", (state) => say({ state }));
