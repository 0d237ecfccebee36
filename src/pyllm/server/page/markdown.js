// Markdown as DOM nodes: blocks here, what is in a line in inline.js. HTML in it stays text.

import { copyButton, el } from "./dom.js";
import { inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(\S.*)$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+)(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const COLUMNS = /^\|?\s*:?-+:?(\s*\|\s*:?-+:?)*\s*\|?$/;
const DEEPEST = 12;

/** Show a text in a place; blocks that did not change keep their nodes, and with them what is selected or unfolded. */
export function show(place, text) {
  const found = blocks(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"), 0);
  const known = place.sources ?? [];
  let same = 0;
  while (same < found.length && same < known.length && found[same].source === known[same]) same++;
  while (place.childNodes.length > same) place.lastChild.remove();
  for (const block of found.slice(same)) place.append(block.make());
  place.sources = found.map((block) => block.source);
}

/** The blocks of lines: {source, make, plain}. */
function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const taken = (depth < DEEPEST && (fence(lines, at) ?? single(lines, at) ?? table(lines, at) ?? quote(lines, at, depth) ?? list(lines, at, depth))) || paragraph(lines, at);
    found.push({ ...taken, source: lines.slice(at, taken.end).join("\n") });
    at = taken.end;
  }
  return found;
}

const nodesOf = (lines, depth) => blocks(lines, depth).map((block) => block.make());

function fence(lines, at) {
  const open = FENCE.exec(lines[at]);
  if (!open) return null;
  const mark = open[1];
  const indent = lines[at].search(/\S/);
  let end = at + 1;
  while (end < lines.length && !closes(lines[end], mark)) end++;
  const code = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indent, Math.max(0, line.search(/\S|$/)))));
  return { end: Math.min(end + 1, lines.length), make: () => codeBlock(code.join("\n"), open[2].trim().split(/\s/)[0]) };
}

function closes(line, mark) {
  const text = line.trim();
  return text.length >= mark.length && text === mark[0].repeat(text.length);
}

export function codeBlock(code, language) {
  return el(
    "div",
    { class: "code" },
    el("div", { class: "code-top" }, el("span", {}, language || "text"), copyButton(() => code, "Copy the code")),
    el("pre", { tabindex: "0" }, el("code", {}, code)),
  );
}

function single(lines, at) {
  const heading = HEADING.exec(lines[at]);
  if (heading) return { end: at + 1, make: () => el(`h${Math.min(6, heading[1].length + 1)}`, {}, ...inline(heading[2].trimEnd().replace(/ #+$/, ""))) };
  return RULE.test(lines[at]) ? { end: at + 1, make: () => el("hr") } : null;
}

function table(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-") || !COLUMNS.test(lines[at + 1].trim())) return null;
  const head = cells(lines[at]);
  const marks = cells(lines[at + 1]);
  if (head.length !== marks.length) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  const sides = marks.map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "right") : null));
  const row = (name, line) => el("tr", {}, ...sides.map((side, i) => el(name, { class: side }, ...inline(line[i] ?? ""))));
  const make = () =>
    el("div", { class: "table", tabindex: "0" }, el("table", {},
      el("thead", {}, row("th", head)),
      el("tbody", {}, ...lines.slice(at + 2, end).map((line) => row("td", cells(line))))));
  return { end, make };
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  // A bar in code, or after a backslash, divides nothing.
  const found = inner.match(/(?:\\.|`[^`]*`|[^|])+|(?<=\|)(?=\|)/g) ?? [];
  return found.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function quote(lines, at, depth) {
  if (!QUOTE.test(lines[at])) return null;
  let end = at;
  while (end < lines.length && lines[end].trim() && (QUOTE.test(lines[end]) || !begins(lines[end]))) end++;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return { end, make: () => el("blockquote", {}, ...nodesOf(inner, depth + 1)) };
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  if (!first) return null;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let loose = false;
  let end = at;
  for (;;) {
    const head = end < lines.length ? ITEM.exec(lines[end]) : null;
    if (!head || /\d/.test(head[2]) !== ordered || head[1].length > first[1].length + 1 || RULE.test(lines[end])) break;
    const width = head[1].length + head[2].length + Math.min(head[3].length, 4);
    const item = [head[4]];
    end++;
    while (end < lines.length && belongs(lines, end, width, head[1].length)) item.push(lines[end].slice(Math.min(width, lines[end++].search(/\S|$/))));
    while (item.length && !item.at(-1).trim()) item.pop();
    items.push(item);
    let next = end;
    while (next < lines.length && !lines[next].trim()) next++;
    if (next > end && ITEM.test(lines[next] ?? "")) {
      loose = true;
      end = next;
    }
  }
  const start = ordered && parseInt(first[2], 10) !== 1 ? parseInt(first[2], 10) : null;
  return { end, make: () => el(ordered ? "ol" : "ul", { start }, ...items.map((item) => listItem(item, loose, depth))) };
}

/** Whether a line goes on with an item whose sign is in column `base` and whose text in `width`. */
function belongs(lines, at, width, base) {
  const line = lines[at];
  const indent = line.search(/\S/);
  if (indent < 0) {
    let next = at;
    while (next < lines.length && !lines[next].trim()) next++;
    return next < lines.length && lines[next].search(/\S/) >= width;
  }
  // Models often indent an inner list by less than its item's text.
  if (indent >= width || (ITEM.test(line) && indent >= base + 2)) return true;
  return !begins(line) && !!lines[at - 1].trim();
}

function listItem(item, loose, depth) {
  const task = /^\[([ xX])\] /.exec(item[0] ?? "");
  if (task) item = [item[0].slice(4), ...item.slice(1)];
  const inner = blocks(item, depth + 1);
  const tight = !loose && inner.filter((block) => block.plain).length < 2;
  const children = inner.flatMap((block) => (block.plain && tight ? block.plain() : [block.make()]));
  const box = task && el("input", { type: "checkbox", disabled: true, checked: task[1] !== " " });
  return el("li", { class: task ? "task" : null }, box, ...children);
}

/** Whether a line begins another block than a paragraph. */
const begins = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || ITEM.test(line) || QUOTE.test(line);

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines[end]) && !table(lines, end)) end++;
  const text = lines.slice(at, end).map((line) => line.trimStart()).join("\n").trimEnd();
  return { end, make: () => el("p", {}, ...inline(text)), plain: () => inline(text) };
}
