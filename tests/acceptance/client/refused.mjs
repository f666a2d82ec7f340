// Follows a board with the token given, and prints the first error and what became of `ready`, as JSON. Its WebSocket is
// that of the package ws, or Node's own if there is a third argument.

import { connect } from "../../../relay/client/js/client.js";

const [url, token, own] = process.argv.slice(2);
const WebSocket = own ? globalThis.WebSocket : (await import("../guide/node_modules/ws/wrapper.mjs")).default;
const relay = connect(url, { WebSocket, token });
const error = new Promise((resolve) => relay.on("error", resolve));
const ready = relay.subscribe("default").ready.then(() => "kept", ({ code }) => code);

const { code, message } = await error;
const waited = new Promise((resolve) => setTimeout(resolve, 50, "waiting"));
console.log(JSON.stringify({ code, message, ready: await Promise.race([ready, waited]) }));
process.exit();
