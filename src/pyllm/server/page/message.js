// A message as it is seen: text, reasoning, calls, figures, and what can be done with it.

import { copyButton, el, fit, iconButton } from "./dom.js";
import { codeBlock, show } from "./markdown.js";
import { siblings } from "./store.js";

export class MessageView {
  /** `acts`: edit(node, text), again(node), goOn(node), choose(node), result(node). */
  constructor(conversation, node, acts) {
    Object.assign(this, { conversation, node, acts });
    this.body = el("div", { class: "body" });
    this.foot = el("div", { class: "foot" });
    const label = node.role === "user" ? "You" : "Assistant";
    this.root = el("article", { class: `message ${node.role}`, "aria-label": label }, this.body, this.foot);
    if (node.role === "assistant") this.#parts();
    this.update();
  }

  #parts() {
    this.thoughtTitle = el("summary");
    this.thoughtText = el("div", { class: "markdown" });
    this.thought = el("details", { class: "fold", hidden: true }, this.thoughtTitle, this.thoughtText);
    this.text = el("div", { class: "markdown" });
    this.calls = el("div", { class: "calls" });
    this.state = el("div", { class: "state" });
    this.body.append(this.thought, this.text, this.calls, this.state);
  }

  /** Show what the message is now. */
  update() {
    const { node } = this;
    this.root.classList.toggle("live", !!node.live);
    if (node.role === "user") this.body.textContent = node.content;
    else {
      this.#reasoning();
      show(this.text, node.content);
      this.#calls();
      this.#state();
    }
    if (this.footOf !== this.#footKey()) this.#foot();
  }

  #reasoning() {
    const { node } = this;
    this.thought.hidden = !node.reasoning;
    if (!node.reasoning) return;
    const thinks = node.live && !node.content && !node.calls;
    const title = thinks ? "Thinking…" : node.thought != null ? `Thought for ${seconds(node.thought)}` : "Thoughts";
    if (this.thoughtTitle.textContent !== title) this.thoughtTitle.textContent = title;
    show(this.thoughtText, node.reasoning);
  }

  #calls() {
    const { node } = this;
    const key = JSON.stringify([node.calls, node.live]);
    if (!node.calls || this.callsOf === key) return;
    this.callsOf = key;
    this.calls.replaceChildren(...node.calls.filter(Boolean).map((call) => this.#call(call)));
  }

  #call(call) {
    const given = call.result != null;
    const shown = el("details", { class: "fold call", open: !given }, el("summary", {}, "Call of ", el("code", {}, call.name)), codeBlock(pretty(call.arguments), "arguments"));
    if (given) shown.append(codeBlock(pretty(call.result), "result"));
    else if (!this.node.live) shown.append(this.#resultForm(call));
    return shown;
  }

  #resultForm(call) {
    const field = el("textarea", { rows: "2", "aria-label": `Result of ${call.name}`, placeholder: "What the function returns" });
    const submit = (event) => {
      event.preventDefault();
      call.result = field.value;
      this.update();
      this.acts.result(this.node);
    };
    return el("form", { class: "edit", on: { submit } }, field, el("div", { class: "buttons" }, el("button", { class: "main", type: "submit" }, "Give the result")));
  }

  #state() {
    const { node } = this;
    const key = [node.live, node.error, node.stopped, node.cut, !!(node.content || node.reasoning || node.calls)].join();
    if (this.stateOf === key) return;
    this.stateOf = key;
    const again = () => this.acts.again(node);
    const more = node.content && !node.calls && el("button", { type: "button", on: { click: () => this.acts.goOn(node) } }, "Continue");
    let shown = [];
    if (node.live && !(node.content || node.reasoning || node.calls)) {
      shown = [el("p", { class: "waits", role: "img", "aria-label": "Waiting for the answer" }, el("i"), el("i"), el("i"))];
    } else if (node.error) {
      shown = [el("div", { class: "problem", role: "alert" }, el("span", {}, capital(node.error)), el("button", { type: "button", on: { click: again } }, "Try again"))];
    } else if (node.stopped && !node.live) shown = [note("Stopped.", more)];
    else if (node.cut && !node.live) shown = [note("The limit of tokens was reached.", more)];
    this.state.replaceChildren(...shown);
  }

  #footKey() {
    const all = siblings(this.conversation, this.node);
    return [!!this.node.live, all.length, all.indexOf(this.node), JSON.stringify(this.node.stats)].join();
  }

  #foot() {
    this.footOf = this.#footKey();
    const { node } = this;
    if (node.live) {
      this.foot.replaceChildren();
      return;
    }
    const tools = el("div", { class: "tools" }, this.#branches());
    if (node.content) tools.append(copyButton(() => node.content, "Copy"));
    if (node.role === "user") tools.append(iconButton("pencil", "Edit", () => this.edit()));
    else if (!node.error || node.content) tools.append(iconButton("again", "Regenerate", () => this.acts.again(node)));
    this.foot.replaceChildren(tools, ...(node.stats ? [figures(node)] : []));
  }

  #branches() {
    const all = siblings(this.conversation, this.node);
    if (all.length < 2) return null;
    const at = all.indexOf(this.node);
    const step = (name, label, to) => {
      const button = iconButton(name, label, () => this.acts.choose(all[to]));
      button.disabled = !all[to];
      return button;
    };
    return el("span", { class: "branches" }, step("left", "Previous version", at - 1), el("span", {}, `${at + 1} / ${all.length}`), step("right", "Next version", at + 1));
  }

  /** Let the person change a message; what they send begins another branch. */
  edit() {
    const field = el("textarea", { "aria-label": "Edited message", rows: "1", on: { input: () => fit(field), keydown: (event) => key(event) } });
    const close = () => {
      this.root.classList.remove("edited");
      this.body.replaceChildren(this.node.content);
      this.foot.hidden = false;
    };
    const submit = (event) => {
      event?.preventDefault();
      const text = field.value.trim();
      close();
      if (text) this.acts.edit(this.node, text);
    };
    const key = (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
    };
    field.value = this.node.content;
    const buttons = el("div", { class: "buttons" }, el("button", { type: "button", on: { click: close } }, "Cancel"), el("button", { class: "main", type: "submit" }, "Send"));
    this.root.classList.add("edited");
    this.foot.hidden = true;
    this.body.replaceChildren(el("form", { class: "edit", on: { submit } }, field, buttons));
    fit(field);
    field.focus();
  }
}

const note = (text, button) => el("p", { class: "note" }, text, button || null);

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function figures({ model, stats: { prompt, cached, made, speed, wait } }) {
  const parts = [`${made} ${made === 1 ? "token" : "tokens"}`];
  if (speed != null) parts.push(`${speed.toFixed(speed < 10 ? 1 : 0)} tokens/s`);
  const title = `${model ? `${model}. ` : ""}Prompt: ${prompt} tokens, ${cached} of them known from before. First token after ${seconds(wait)}.`;
  return el("span", { class: "figures", title }, parts.join(" · "));
}

const seconds = (n) => (n < 10 ? `${n.toFixed(1)} s` : `${Math.round(n)} s`);

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
