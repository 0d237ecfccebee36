// What is in a line of Markdown: code, emphasis, links. An image is a link: nothing is loaded that a model names.

import { el } from "./dom.js";

const SPECIAL = /\\[!-/:-@[-`{-~]|`+|\*\*|__|~~|\*|_|!?\[|<https?:\/\/[^\s<>]+>|https?:\/\/[^\s<>]+|\n/g;
const TAGS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "del" };
const DEEPEST = 8;

/** The nodes of a text. */
export function inline(text, depth = 0) {
  const found = [];
  const missing = new Set();
  let plain = "";
  let at = 0;
  const flush = () => {
    if (plain) found.push(plain);
    plain = "";
  };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const match = SPECIAL.exec(text);
    if (!match) break;
    plain += text.slice(at, match.index);
    const taken = depth < DEEPEST ? special(text, match, depth, missing) : null;
    if (taken?.text != null) plain += taken.text;
    else if (taken) {
      flush();
      found.push(taken.node);
    } else plain += match[0];
    at = taken?.end ?? match.index + match[0].length;
  }
  plain += text.slice(at);
  flush();
  return found;
}

function special(text, match, depth, missing) {
  const mark = match[0];
  const at = match.index;
  const after = at + mark.length;
  if (mark[0] === "\\") return { text: mark[1], end: after };
  if (mark === "\n") return { node: el("br"), end: after };
  if (mark[0] === "`") return code(text, mark, after, missing);
  if (mark.endsWith("[")) return bracketed(text, after, depth);
  if (mark[0] === "<") return { node: link(mark.slice(1, -1), [mark.slice(1, -1)]), end: after };
  if (mark[0] === "h") return bare(mark, at);
  return emphasis(text, mark, at, depth, missing);
}

function code(text, mark, after, missing) {
  if (missing.has(mark)) return null;
  for (let end = text.indexOf(mark, after); end >= 0; end = text.indexOf(mark, end)) {
    let run = end;
    while (text[run] === "`") run++;
    if (run - end === mark.length) {
      const inner = text.slice(after, end).replaceAll("\n", " ");
      const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
      return { node: el("code", {}, padded ? inner.slice(1, -1) : inner), end: run };
    }
    end = run;
  }
  missing.add(mark);
  return null;
}

function emphasis(text, mark, at, depth, missing) {
  const after = at + mark.length;
  if (missing.has(mark) || !text[after]?.trim()) return null;
  if (mark[0] === "_" && isWord(text[at - 1])) return null;
  for (let end = after; end < text.length; end++) {
    const sign = text[end];
    if (sign === "\\") end++;
    else if (sign === "`") end = afterCode(text, end) - 1;
    else if (sign === mark[0]) {
      let run = end;
      while (text[run] === sign) run++;
      const length = run - end;
      const fits = mark.length === 1 ? length !== 2 : length >= 2;
      if (end > after && fits && text[end - 1].trim() && !(sign === "_" && isWord(text[run]))) {
        const close = mark.length === 1 ? end : run - mark.length;
        return { node: el(TAGS[mark], {}, ...inline(text.slice(after, close), depth + 1)), end: close + mark.length };
      }
      end = run - 1;
    }
  }
  missing.add(mark);
  return null;
}

const isWord = (sign) => sign !== undefined && /[\p{L}\p{N}]/u.test(sign);

function afterCode(text, at) {
  let run = at;
  while (text[run] === "`") run++;
  const end = text.indexOf(text.slice(at, run), run);
  return end < 0 ? run : end + run - at;
}

function bracketed(text, after, depth) {
  const close = closing(text, after, "[", "]");
  if (close < 0 || text[close + 1] !== "(") return null;
  const end = closing(text, close + 2, "(", ")");
  if (end < 0) return null;
  const [, target] = /^\s*<?([^\s>]*)>?/.exec(text.slice(close + 2, end));
  const label = inline(text.slice(after, close), depth + 1);
  const node = link(target, label.length ? label : [target]);
  return node ? { node, end: end + 1 } : null;
}

function closing(text, at, open, close) {
  let depth = 1;
  for (let end = at; end < Math.min(text.length, at + 2000); end++) {
    if (text[end] === "\\") end++;
    else if (text[end] === open) depth++;
    else if (text[end] === close && --depth === 0) return end;
  }
  return -1;
}

function bare(mark, at) {
  let url = mark.replace(/[.,;:!?'"*_~`\]]+$/, "");
  if (url.endsWith(")") && !url.includes("(")) url = url.slice(0, -1);
  const node = link(url, [url]);
  return node && { node, end: at + url.length };
}

/** A link to another site; null for what is none, javascript: among them. */
function link(target, label) {
  let url;
  try {
    url = new URL(target);
  } catch {
    return null;
  }
  if (url.protocol !== "https:" && url.protocol !== "http:") return null;
  return el("a", { href: url.href, rel: "noopener noreferrer", target: "_blank" }, ...label);
}
