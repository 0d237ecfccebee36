// The list of conversations.

import { el, find, iconButton, toast } from "./dom.js";
import * as store from "./store.js";

export class Side {
  /** `acts`: open(id), removed(id). */
  constructor(acts) {
    this.acts = acts;
    this.current = null;
    find("side-open").addEventListener("click", () => this.slide(true));
    find("side-close").addEventListener("click", () => this.slide(false));
    find("shade").addEventListener("click", () => this.slide(false));
  }

  get isOpen() {
    return document.body.classList.contains("side-open");
  }

  /** Slide in or out, where the page is narrow. */
  slide(open) {
    if (open === this.isOpen) return;
    document.body.classList.toggle("side-open", open);
    find("side-open").setAttribute("aria-expanded", String(open));
    (open ? find("side-close") : find("side-open")).focus();
  }

  show(current = this.current) {
    this.current = current;
    find("conversations").replaceChildren(...store.all().map((one) => this.#row(one)));
  }

  #row(conversation) {
    const { id } = conversation;
    const on = { click: () => this.acts.open(id), dblclick: () => this.#rename(conversation, row) };
    const name = el("button", { class: "name", type: "button", "aria-current": id === this.current && "page", on }, conversation.title || "New chat");
    const row = el(
      "li",
      {},
      name,
      iconButton("pencil", `Rename: ${conversation.title}`, () => this.#rename(conversation, row)),
      iconButton("trash", `Delete: ${conversation.title}`, () => this.#remove(conversation)),
    );
    return row;
  }

  #rename(conversation, row) {
    let done = false;
    const end = (keep) => {
      if (done) return;
      done = true;
      const title = field.value.trim();
      if (keep && title) {
        conversation.title = title;
        store.save(conversation);
      }
      this.show();
    };
    const keydown = (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.stopPropagation();
      event.preventDefault();
      end(event.key === "Enter");
    };
    const field = el("input", { "aria-label": "Name of the conversation", maxlength: "120", on: { keydown, blur: () => end(true) } });
    field.value = conversation.title;
    row.replaceChildren(field);
    field.select();
    field.focus();
  }

  #remove(conversation) {
    store.remove(conversation.id);
    this.acts.removed(conversation.id);
    this.show();
    toast("The conversation is deleted.", "Undo", () => {
      store.save(conversation);
      this.acts.open(conversation.id);
    });
  }
}
