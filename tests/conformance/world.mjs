// A connection, a clock and chance for the JavaScript client, of which a test has the say.

import assert from "node:assert/strict";

/** All that the client sees of the world. */
export class World {
  now = 0;
  timers = [];
  sockets = []; // one for each attempt
  sent = [];

  clock = {
    setTimeout: (callback, milliseconds) => {
      this.timers.push({ at: this.now + Math.round(milliseconds), callback });
      return this.timers.at(-1);
    },
    clearTimeout: (timer) => {
      this.timers = this.timers.filter((other) => other !== timer);
    },
    now: () => this.now,
    random: () => 1,
  };

  WebSocket = ((world) =>
    class {
      constructor(url, protocols, ...options) {
        Object.assign(this, { token: protocols[1]?.slice("bearer.".length), options, state: "connecting" });
        world.sockets.push(this);
      }

      send(text) {
        assert.equal(this.state, "open", `sent on a socket that is ${this.state}: ${text}`);
        world.sent.push(JSON.parse(text));
      }

      close() {
        this.closedByClient = this.state === "open";
        this.state = "closed";
      }

      open() {
        this.state = "open";
        this.onopen?.({});
      }

      receive(text) {
        this.onmessage?.({ data: text });
      }

      end(code, message = "") {
        this.state = "closed";
        if (code === 1006) this.onerror?.({ message });
        this.onclose?.({ code, reason: "" });
      }
    })(this);

  get socket() {
    return this.sockets.at(-1);
  }

  async wait(seconds) {
    const until = this.now + Math.round(seconds * 1000);
    for (;;) {
      const due = this.timers.filter(({ at }) => at <= until).sort((one, other) => one.at - other.at)[0];
      if (!due) break;
      this.now = due.at;
      this.clock.clearTimeout(due);
      due.callback();
      await settled();
    }
    this.now = until;
  }
}

/** Lets everything happen that needs no time. */
export const settled = () => new Promise(setImmediate);
