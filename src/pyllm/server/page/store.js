// Conversations and settings, kept in this browser. A conversation is a tree: editing or asking anew adds a branch.

const PREFIX = "pyllm.chat.";
const SETTINGS = "pyllm.settings";
const MODEL = "pyllm.model";
const ROOT = "root";
const loaded = new Map();

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(9)), (n) => n.toString(36).padStart(2, "0")).join("");

function read(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** All conversations, the newest first. */
export function all() {
  for (const name of Object.keys(localStorage)) {
    const id = name.startsWith(PREFIX) && name.slice(PREFIX.length);
    if (!id || loaded.has(id)) continue;
    const found = read(name, null);
    if (!Array.isArray(found?.nodes)) continue;
    for (const node of found.nodes) if (node.live) Object.assign(node, { live: false, stopped: true });
    loaded.set(id, found);
  }
  return [...loaded.values()].sort((a, b) => b.updated - a.updated);
}

export const get = (id) => loaded.get(id) ?? all().find((one) => one.id === id);

export function create() {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, nodes: [], chosen: {} };
}

/** Keep a conversation; false where the browser has no room. */
export function save(conversation) {
  loaded.set(conversation.id, conversation);
  return write(PREFIX + conversation.id, conversation);
}

export function remove(id) {
  loaded.delete(id);
  localStorage.removeItem(PREFIX + id);
}

/** Take over what another tab changed; the id of the conversation, or null. */
export function changed(event) {
  if (!event.key?.startsWith(PREFIX)) return null;
  const id = event.key.slice(PREFIX.length);
  const mine = loaded.get(id);
  if (mine?.nodes.some((node) => node.live)) return null;
  loaded.delete(id);
  return id;
}

/** Add a message after another (null: at the beginning) and choose it. */
export function add(conversation, parent, message) {
  const node = { id: newId(), parent: parent?.id ?? ROOT, ...message };
  conversation.nodes.push(node);
  choose(conversation, node);
  conversation.updated = Date.now();
  return node;
}

/** Take a message out that nothing follows. */
export function drop(conversation, node) {
  conversation.nodes = conversation.nodes.filter((one) => one !== node);
  const last = conversation.nodes.filter((one) => one.parent === node.parent).at(-1);
  if (last) choose(conversation, last);
  else delete conversation.chosen[node.parent];
}

export function choose(conversation, node) {
  conversation.chosen[node.parent] = node.id;
}

/** Messages that are shown, in order. */
export function path(conversation) {
  const byId = new Map(conversation.nodes.map((node) => [node.id, node]));
  const found = [];
  let next = byId.get(conversation.chosen[ROOT]);
  while (next) {
    found.push(next);
    next = byId.get(conversation.chosen[next.id]);
  }
  return found;
}

/** Messages up to one, without it. */
export function before(conversation, node) {
  const byId = new Map(conversation.nodes.map((one) => [one.id, one]));
  const found = [];
  for (let at = byId.get(node.parent); at; at = byId.get(at.parent)) found.unshift(at);
  return found;
}

export const siblings = (conversation, node) => conversation.nodes.filter((one) => one.parent === node.parent);

export const settings = { get: () => read(SETTINGS, {}), set: (value) => write(SETTINGS, value) };
export const model = { get: () => read(MODEL, ""), set: (value) => write(MODEL, value) };
