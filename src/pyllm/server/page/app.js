// The chat: what the person does, and what follows from it.

import { models } from "./api.js";
import { announce, el, find, fit, icon, toast } from "./dom.js";
import { MessageView } from "./message.js";
import { Run } from "./run.js";
import { follow, toEnd } from "./scroll.js";
import { askKey, setUpSettings, setUpTheme } from "./settings.js";
import { Side } from "./side.js";
import * as store from "./store.js";

const runs = new Map();
const question = find("question");
let conversation = store.create();
let views = new Map();
const changedNodes = new Set();

const side = new Side({
  open,
  removed(id) {
    runs.get(id)?.stop();
    if (id === conversation.id) startNew();
  },
});

// What is seen

function showAll() {
  const path = store.path(conversation);
  const known = views;
  views = new Map(path.map((node) => [node.id, known.get(node.id) ?? new MessageView(conversation, node, acts)]));
  find("messages").replaceChildren(...(path.length ? [...views.values()].map((view) => view.root) : [welcome()]));
  for (const view of views.values()) view.update();
  showState();
  follow();
}

const welcome = () => el("div", { class: "welcome" }, el("h1", {}, "What is on your mind?"), el("p", {}, "Ask, draft, explain, translate, write code."));

function showState() {
  const isRunning = runs.has(conversation.id);
  find("stop").hidden = !isRunning;
  find("send").hidden = isRunning;
  find("send").disabled = !question.value.trim();
  document.title = conversation.title ? `${conversation.title} – pyllm` : "pyllm";
}

/** Show a message anew with the next frame, however many parts come before it. */
function changed(node) {
  if (!changedNodes.size) requestAnimationFrame(showChanged);
  changedNodes.add(node.id);
}

function showChanged() {
  for (const id of changedNodes) views.get(id)?.update();
  changedNodes.clear();
  follow();
}

// What happens

const acts = {
  edit(node, text) {
    if (runs.has(conversation.id)) return;
    const parent = conversation.nodes.find((one) => one.id === node.parent);
    answer(store.add(conversation, parent, { role: "user", content: text }));
  },
  again(node) {
    if (runs.has(conversation.id)) return;
    const parent = conversation.nodes.find((one) => one.id === node.parent);
    // What went wrong before there was an answer is no version of it.
    if (node.error && !node.content && !conversation.nodes.some((one) => one.parent === node.id)) store.drop(conversation, node);
    answer(parent);
  },
  goOn(node) {
    if (!runs.has(conversation.id)) generate(node, true);
  },
  choose(node) {
    if (runs.has(conversation.id)) return;
    store.choose(conversation, node);
    save(conversation);
    showAll();
  },
  result(node) {
    save(conversation);
    if (node.calls.every((call) => call.result != null)) answer(node);
  },
};

function answer(parent) {
  generate(store.add(conversation, parent, { role: "assistant", content: "" }));
}

async function generate(node, goOn = false) {
  const mine = conversation;
  const run = new Run(mine, node, { model: find("model").value, settings: store.settings.get(), goOn, changed });
  runs.set(mine.id, run);
  save(mine);
  side.show(mine.id);
  showAll();
  toEnd();
  announce("The answer begins.");
  const saves = setInterval(() => save(mine), 2000);
  const problem = await run.end();
  clearInterval(saves);
  runs.delete(mine.id);
  if (store.get(mine.id) === mine) save(mine);
  if (mine === conversation) showState();
  announce(problem ? "The answer failed." : node.stopped ? "The answer is stopped." : "The answer is complete.");
  if (problem?.status === 401 && (await askKey())) {
    await showModels();
    if (mine === conversation) acts.again(node);
  } else showModels();
}

let saidFull = false;

function save(one) {
  if (store.save(one) || saidFull) return;
  saidFull = true;
  toast("The browser has no room for more; delete conversations to keep new ones.");
}

function send() {
  const text = question.value.trim();
  if (!text || runs.has(conversation.id)) return;
  question.value = "";
  fit(question);
  const last = store.path(conversation).at(-1);
  conversation.title ||= text.replace(/\s+/g, " ").slice(0, 60);
  answer(store.add(conversation, last, { role: "user", content: text }));
}

function open(id) {
  const found = store.get(id);
  if (!found) return;
  conversation = found;
  arrive();
}

function startNew() {
  conversation = store.create();
  arrive();
  question.focus();
}

function arrive() {
  views = new Map();
  sessionStorage.setItem("pyllm.open", conversation.id);
  side.show(conversation.id);
  side.slide(false);
  showAll();
  toEnd();
}

/** Fill the list of models. Where the server wants a key, ask for it. */
async function showModels() {
  const list = find("model");
  let found;
  try {
    found = await models();
  } catch (error) {
    if (error.status === 401 && (await askKey())) return showModels();
    if (!list.options.length) toast(`The models are not known: ${error.message}.`, "Try again", showModels);
    return;
  }
  const wanted = list.value || store.model.get();
  const key = JSON.stringify(found.map((one) => [one.id, one.max_model_len]));
  // A list that did not change is left as it is: it may be open.
  if (list.dataset.key === key && found.length) return;
  list.dataset.key = key;
  if (!found.length) toast("This server has no models; pyllm pull NAME fetches one.", "Look again", showModels);
  list.replaceChildren(...found.map((one) => el("option", { value: one.id, title: one.max_model_len ? `Loaded, up to ${one.max_model_len} tokens` : "Loaded when it is asked" }, one.id)));
  if (found.some((one) => one.id === wanted)) list.value = wanted;
}

// Keys and buttons

function setUp() {
  for (const node of document.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));
  for (const node of document.querySelectorAll("[data-close]")) node.addEventListener("click", () => node.closest("dialog").close());
  const touch = matchMedia("(pointer: coarse)");
  find("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  question.addEventListener("input", () => {
    fit(question);
    showState();
  });
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch.matches) return;
    event.preventDefault();
    send();
  });
  find("stop").addEventListener("click", stop);
  find("new").addEventListener("click", startNew);
  find("model").addEventListener("change", () => store.model.set(find("model").value));
  document.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey) {
      event.preventDefault();
      if (!document.querySelector("dialog[open]")) startNew();
    } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
      if (side.isOpen) side.slide(false);
      else stop();
    }
  });
  addEventListener("pagehide", () => runs.forEach((run) => save(run.conversation)));
  addEventListener("storage", (event) => {
    const id = store.changed(event);
    if (id === null) return;
    side.show();
    if (id === conversation.id && store.get(id)) open(id);
  });
}

function stop() {
  runs.get(conversation.id)?.stop();
  question.focus();
}

setUp();
setUpTheme();
setUpSettings();
const before = store.get(sessionStorage.getItem("pyllm.open") ?? "");
if (before) conversation = before;
arrive();
showModels();
