// An answer that comes: from the request to the last token.

import { chat } from "./api.js";
import { before } from "./store.js";

const SAMPLING = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

export class Run {
  /** `changed` is called with each part that comes. */
  constructor(conversation, node, { model, settings, goOn = false, changed }) {
    this.conversation = conversation;
    this.node = node;
    this.changed = changed;
    this.controller = new AbortController();
    this.body = {
      model,
      messages: wire([...before(conversation, node), ...(goOn ? [node] : [])], settings.system),
      ...(goOn ? { continue_final_message: true } : {}),
      ...sampling(settings),
    };
    Object.assign(node, { live: true, stopped: false, error: null, cut: false, model });
  }

  stop() {
    this.controller.abort();
  }

  /** Fill the message; the error where there is one, else null. */
  async end() {
    const { node } = this;
    const began = performance.now();
    let first = 0;
    let problem = null;
    try {
      for await (const chunk of chat(this.body, this.controller.signal)) {
        const [choice] = chunk.choices;
        if (choice && take(node, choice, began)) first ||= performance.now();
        if (chunk.usage) node.stats = stats(chunk.usage, began, first);
        this.changed(node);
      }
    } catch (error) {
      if (error.name === "AbortError") node.stopped = true;
      else {
        problem = error;
        node.error = error.message;
      }
    }
    node.live = false;
    this.changed(node);
    return problem;
  }
}

/** Add a part of the answer; whether there was something in it. */
function take(node, { delta, finish_reason: reason }, began) {
  if (reason === "length") node.cut = true;
  if (delta.reasoning_content) node.reasoning = (node.reasoning ?? "") + delta.reasoning_content;
  if (delta.content) {
    if (node.reasoning && node.thought == null) node.thought = (performance.now() - began) / 1000;
    node.content += delta.content;
  }
  for (const part of delta.tool_calls ?? []) {
    node.calls ??= [];
    const call = (node.calls[part.index] ??= { id: "", name: "", arguments: "" });
    if (part.id) call.id = part.id;
    if (part.function?.name) call.name += part.function.name;
    call.arguments += part.function?.arguments ?? "";
  }
  return !!(delta.content || delta.reasoning_content || delta.tool_calls);
}

function stats(usage, began, first) {
  const now = performance.now();
  const seconds = (now - (first || began)) / 1000;
  const made = usage.completion_tokens;
  return {
    prompt: usage.prompt_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    made,
    // The first token is there when the clock begins.
    speed: made > 1 && seconds > 0 ? (made - 1) / seconds : null,
    wait: ((first || now) - began) / 1000,
  };
}

function sampling(settings) {
  const found = {};
  for (const name of SAMPLING) if (settings[name] != null) found[name] = settings[name];
  if (settings.tools) found.tools = JSON.parse(settings.tools);
  return found;
}

/** Messages as the API takes them. */
function wire(nodes, system) {
  const found = system?.trim() ? [{ role: "system", content: system }] : [];
  for (const node of nodes) {
    if (node.role === "user") found.push({ role: "user", content: node.content });
    else if (node.calls?.length) {
      const calls = node.calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
      found.push({ role: "assistant", content: node.content || null, tool_calls: calls, ...(node.reasoning ? { reasoning_content: node.reasoning } : {}) });
      for (const call of node.calls) found.push({ role: "tool", tool_call_id: call.id, content: call.result ?? "no result" });
    } else if (node.content) found.push({ role: "assistant", content: node.content });
  }
  return found;
}
