// Dialogs: settings, and the key.

import { key } from "./api.js";
import { find } from "./dom.js";
import { settings } from "./store.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const TEXTS = ["system", "tools"];

export function setUpSettings() {
  const dialog = find("settings");
  const form = dialog.querySelector("form");
  find("settings-open").addEventListener("click", () => {
    const known = settings.get();
    for (const name of [...NUMBERS, ...TEXTS]) form.elements[name].value = known[name] ?? "";
    find("settings-problem").hidden = true;
    dialog.showModal();
  });
  find("settings-reset").addEventListener("click", () => {
    for (const name of [...NUMBERS, ...TEXTS]) form.elements[name].value = "";
  });
  form.addEventListener("submit", (event) => {
    const tools = form.elements.tools.value.trim();
    if (tools && !isList(tools)) {
      event.preventDefault();
      find("settings-problem").textContent = "Tools must be a list in JSON.";
      find("settings-problem").hidden = false;
      return;
    }
    settings.set(read(form));
  });
}

function read(form) {
  const found = {};
  for (const name of NUMBERS) if (form.elements[name].value !== "") found[name] = Number(form.elements[name].value);
  for (const name of TEXTS) if (form.elements[name].value.trim()) found[name] = form.elements[name].value.trim();
  return found;
}

function isList(text) {
  try {
    return Array.isArray(JSON.parse(text));
  } catch {
    return false;
  }
}

/** Ask for the key; whether there is a new one. */
export function askKey() {
  const dialog = find("key");
  if (dialog.open) return Promise.resolve(false);
  find("key-problem").hidden = !key.get();
  find("key-field").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "save" && find("key-field").value.trim();
      if (given) key.set(given);
      resolve(!!given);
    }, { once: true });
  });
}

export function setUpTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  find("theme").addEventListener("click", () => {
    const usual = system.matches ? "dark" : "light";
    const next = (root.dataset.theme ?? usual) === "dark" ? "light" : "dark";
    // Who chooses what the system has follows the system.
    if (next === usual) {
      delete root.dataset.theme;
      localStorage.removeItem("pyllm.theme");
    } else {
      root.dataset.theme = next;
      localStorage.setItem("pyllm.theme", next);
    }
  });
}
