import WebSocket from 'ws';

const ws = new WebSocket('ws://localhost:4002');

ws.on('open', () => {
  console.log('Connected to Vibe Stack WebSocket');

  // Subscribe to updates
  ws.send(JSON.stringify({
    type: 'subscribe',
    boardId: 'default'
  }));
});

ws.on('message', (data) => {
  const message = JSON.parse(data.toString());
  console.log('Received:', message);
  // Handle message...
});

ws.on('close', () => {
  console.log('Disconnected');
});

ws.on('error', (error) => {
  console.error('Error:', error);
});
