// What one would write first in Node: LISTEN, and a loop over the board's clients. Baseline A.
//
// Written fairly: one JSON text per change, not one per client; simultaneous subscribers share a query; no compression.

import pg from 'pg';
import { WebSocketServer, WebSocket } from 'ws';

const boards = new Map();
const reads = new Map();
const database = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 4 });

function read(board) {
  let reading = reads.get(board);
  if (!reading) {
    reading = database
      .query('select * from public.tasks where board_id = $1 order by created_at', [board])
      .then(({ rows }) => JSON.stringify({ type: 'board.sync', data: { boardId: board, tasks: rows } }))
      .finally(() => reads.delete(board));
    reads.set(board, reading);
  }
  return reading;
}

async function subscribe(client, board) {
  const text = await read(board);
  if (!boards.has(board)) boards.set(board, new Set());
  boards.get(board).add(client);
  client.on('close', () => boards.get(board).delete(client));
  client.send(text);
}

const listener = new pg.Client({ connectionString: process.env.DATABASE_URL });
await listener.connect();
listener.on('notification', ({ payload }) => {
  const { board, message } = JSON.parse(payload);
  const text = JSON.stringify(message);
  for (const client of boards.get(board) ?? []) {
    if (client.readyState === WebSocket.OPEN) client.send(text);
  }
});
await listener.query('listen changes');

const server = new WebSocketServer({ port: Number(process.env.PORT), perMessageDeflate: false });
server.on('connection', (client) => {
  client.on('error', () => client.terminate());
  client.on('message', (data) => {
    const { type, boardId } = JSON.parse(data);
    if (type === 'subscribe') subscribe(client, boardId);
  });
});
server.on('listening', () => console.log('listening'));
