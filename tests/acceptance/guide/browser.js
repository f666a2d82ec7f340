// Connect to WebSocket server
const ws = new WebSocket('ws://localhost:4002');

// Connection opened
ws.addEventListener('open', () => {
  console.log('Connected to Vibe Stack WebSocket');

  // Subscribe to board updates
  ws.send(JSON.stringify({
    type: 'subscribe',
    boardId: 'default'
  }));
});

// Listen for messages
ws.addEventListener('message', (event) => {
  const message = JSON.parse(event.data);

  switch (message.type) {
    case 'task.created':
      console.log('New task:', message.data);
      addTaskToUI(message.data);
      break;

    case 'task.updated':
      console.log('Task updated:', message.data);
      updateTaskInUI(message.data.id, message.data.changes);
      break;

    case 'task.moved':
      console.log('Task moved:', message.data);
      moveTaskInUI(message.data.id, message.data.toLane);
      break;

    case 'task.deleted':
      console.log('Task deleted:', message.data);
      removeTaskFromUI(message.data.id);
      break;

    case 'board.sync':
      console.log('Full board sync:', message.data);
      refreshBoardUI(message.data.lanes);
      break;
  }
});

// Connection closed
ws.addEventListener('close', () => {
  console.log('Disconnected from WebSocket');
});

// Connection error
ws.addEventListener('error', (error) => {
  console.error('WebSocket error:', error);
});

// Keep connection alive with ping
setInterval(() => {
  if (ws.readyState === WebSocket.OPEN) {
    ws.send(JSON.stringify({ type: 'ping' }));
  }
}, 30000); // Every 30 seconds
