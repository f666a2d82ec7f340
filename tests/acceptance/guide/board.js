// The user interface that the guide's browser client calls: the board as lanes of cards.

const cards = new Map(); // task id -> its card

function laneElement(lane) {
  const found = document.querySelector(`[data-lane="${CSS.escape(lane)}"]`);
  if (found) return found;
  const element = document.createElement('section');
  element.className = 'lane';
  element.dataset.lane = lane;
  const heading = document.createElement('h2');
  heading.textContent = lane;
  element.append(heading);
  document.getElementById('board').append(element);
  return element;
}

function show({ card, task }) {
  card.textContent = `${task.title} (${task.priority})`;
}

function addTaskToUI(task) {
  const card = document.createElement('div');
  card.className = 'task';
  card.dataset.id = task.id;
  const entry = { card, task };
  cards.set(task.id, entry);
  show(entry);
  laneElement(task.lane).append(card);
}

function updateTaskInUI(id, changes) {
  const entry = cards.get(id);
  Object.assign(entry.task, changes);
  show(entry);
}

function moveTaskInUI(id, toLane) {
  laneElement(toLane).append(cards.get(id).card);
}

function removeTaskFromUI(id) {
  cards.get(id).card.remove();
  cards.delete(id);
}

function refreshBoardUI(lanes) {
  document.getElementById('board').replaceChildren();
  cards.clear();
  for (const [lane, tasks] of Object.entries(lanes)) {
    laneElement(lane);
    tasks.forEach(addTaskToUI);
  }
}
