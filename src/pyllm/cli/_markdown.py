"""Markdown as lines for a terminal, in parts of which a stream's finished ones stay as they are.

What a browser would hide or count anew (HTML, definitions of links, pictures, numbers of lists) is shown as it is
written. Line ends within a paragraph are kept, as answers mean them. A line of dashes under a text is a rule, not a
heading: while a list's first dash comes, the text above it would be a heading for a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich import box
from rich.console import Console
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from pyllm.cli._output import neutralize

_PARSER = (
    MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable(["lheading", "reference"])
)
_CODE_THEME = "ansi_dark"  # the terminal's own colours: readable on a light and on a dark background
_RULE = 24
"""Columns of the rule around a code block."""
_LEAST = 8
"""Columns that text gets however deep it is nested."""
_TAB = 4

_DIM = Style(dim=True)
_CODE = Style(bold=True, color="cyan")
_URL = Style(underline=True)
_MARKS = {"em_open": Style(italic=True), "strong_open": Style(bold=True), "s_open": Style(strike=True)}
_HEADINGS = {
    "h1": Style(bold=True, underline=True, color="magenta"),
    "h2": Style(bold=True, color="magenta"),
}
_HEADING = Style(bold=True)

Lines = list[Text]
"""Texts of one line each."""


class Part(NamedTuple):
    """Lines that come or change together."""

    lines: Callable[[], Lines]
    final: bool
    """Whether no further text changes them."""


class Block(NamedTuple):
    """A block that is in no other, such as a paragraph, a list or a code block."""

    parts: list[Part]
    start: int
    """Its first line in the source."""


class _Node(NamedTuple):
    token: Token
    inner: list[_Node]

    @property
    def start(self) -> int:
        return self.token.map[0] if self.token.map else 0

    @property
    def end(self) -> int:
        return self.token.map[1] if self.token.map else 0


def blocks(source: str, console: Console, ended: bool) -> list[Block]:
    """The blocks of a text that may go on, unless it has ended."""
    nodes = _tree(iter(_PARSER.parse(source)))
    # A line that has begun may still become anything.
    n_lines = source.count("\n") + ended
    following = [node.start < n_lines for node in nodes[1:]]
    return [
        Block(_parts(node, source, console, n_lines, ended or closed), node.start)
        for node, closed in zip(nodes, [*following, False], strict=False)
    ]


def _tree(tokens: Iterator[Token]) -> list[_Node]:
    """The nodes up to the end of the enclosing one."""
    nodes = []
    for token in tokens:
        if token.nesting < 0:
            break
        nodes.append(_Node(token, _tree(tokens) if token.nesting > 0 else []))
    return nodes


def _parts(node: _Node, source: str, console: Console, n_lines: int, final: bool) -> list[Part]:
    kind = node.token.type
    if kind in ("bullet_list_open", "ordered_list_open"):
        following = [item.start < n_lines for item in node.inner[1:]]
        rows = source.split("\n")
        return [
            Part(partial(_spaced_item, node, i, rows, console, console.width), final or done)
            for i, done in enumerate([*following, False])
        ]
    if kind == "fence":
        return _fence_parts(node, n_lines, final)
    return [Part(partial(_lines, node, console, console.width), final)]


def _lines(node: _Node, console: Console, width: int) -> Lines:
    """The lines of any block, at most so wide; code is as wide as it is."""
    token = node.token
    width = max(width, _LEAST)
    match token.type:
        case "paragraph_open":
            return _wrapped(_inline(node), console, width)
        case "heading_open":
            return _wrapped(_inline(node, _HEADINGS.get(token.tag, _HEADING)), console, width)
        case "bullet_list_open" | "ordered_list_open":
            return [line for i in range(len(node.inner)) for line in _item(node, i, console, width)]
        case "blockquote_open":
            return [Text.assemble(("▌ ", _DIM), line) for line in _stacked(node.inner, console, width - 2)]
        case "fence" | "code_block":
            return [_rule(token.info), *_code(token), _rule()]
        case "hr":
            return [Text("─" * width, _DIM)]
        case "table_open":
            return _table(node, console, width)
    return [Text(neutralize(token.content))]


def _stacked(nodes: Sequence[_Node], console: Console, width: int) -> Lines:
    """Blocks within another: a line between them, except before a list of a paragraph."""
    lines: Lines = []
    for before, node in zip([None, *nodes], nodes, strict=False):
        belongs = node.token.type.endswith("_list_open") and before and before.token.type == "paragraph_open"
        if before and not belongs:
            lines.append(Text())
        lines += _lines(node, console, width)
    return lines


def _item(node: _Node, i: int, console: Console, width: int) -> Lines:
    """An item of a list, with its mark."""
    item = node.inner[i]
    is_numbered = node.token.type == "ordered_list_open"
    mark = f"{item.token.info}{item.token.markup}".rjust(3) + " " if is_numbered else " • "
    lines = _stacked(item.inner, console, width - len(mark)) or [Text()]
    return [Text.assemble(" " * len(mark) if n else mark, line) for n, line in enumerate(lines)]


def _spaced_item(node: _Node, i: int, source: Sequence[str], console: Console, width: int) -> Lines:
    """An item, and the empty line before it where the source has one."""
    start = node.inner[i].start
    spaced = i > 0 and not source[start - 1].strip()
    return [*([Text()] if spaced else []), *_item(node, i, console, width)]


def _fence_parts(node: _Node, n_lines: int, final: bool) -> list[Part]:
    """A code block line by line."""
    token = node.token
    rows = token.content.split("\n")
    if not rows[-1]:
        rows.pop()
    is_closed = node.end - node.start == len(rows) + 2
    if rows and not (is_closed or final or token.content.endswith("\n")) and token.markup.startswith(rows[-1].strip()):
        rows.pop()  # what may become the closing line is no code yet
    highlighted = cache(partial(_code, token))
    first = node.start + 1
    parts = [Part(lambda: [_rule(token.info)], final or node.start < n_lines)]
    parts += [
        Part(lambda i=i: highlighted()[i : i + 1], final or first + i < n_lines)  # type: ignore[misc]
        for i in range(len(rows))
    ]
    if is_closed or final:
        parts.append(Part(lambda: [_rule()], final or node.end <= n_lines))
    return parts


def _rule(info: str = "") -> Text:
    """The line above a code block, with the language, or below it."""
    label = f"── {neutralize(info)} " if info.strip() else ""
    return Text(label.ljust(_RULE, "─"), _DIM)


def _code(token: Token) -> Lines:
    """The lines of a code block, highlighted where the language is known."""
    code = neutralize(token.content).removesuffix("\n").expandtabs(_TAB)
    words = token.info.split()
    lexer = _lexer(words[0].lower()) if words else None
    if lexer is not None:
        text = Syntax(code, lexer, theme=_CODE_THEME, background_color="default").highlight(code)
        if text.plain.removesuffix("\n") == code:
            text.no_wrap = True
            text.right_crop(len(text.plain) - len(code))
            return list(text.split("\n", allow_blank=True))
    return [Text(line) for line in code.split("\n")]


@cache
def _lexer(language: str) -> Any:
    """The language's lexer, or None; looking for an unknown one takes long."""
    return Syntax("", language, tab_size=_TAB).lexer


def _table(node: _Node, console: Console, width: int) -> Lines:
    rows = [row for group in node.inner for row in group.inner]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, border_style=_DIM)
    for cell in rows[0].inner:
        table.add_column(_inline(cell, _HEADING), justify=_justify(cell.token), overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(_inline, row.inner))
    options = console.options.update(width=width, height=None)
    lines = [Text.assemble(*((s.text, s.style or "") for s in line)) for line in console.render_lines(table, options)]
    return [_stripped(line) for line in lines]


def _justify(token: Token) -> Literal["left", "right", "center"]:
    style = str(token.attrs.get("style", ""))
    return "right" if "right" in style else "center" if "center" in style else "left"


def _wrapped(text: Text, console: Console, width: int) -> Lines:
    return [_stripped(line) for line in text.wrap(console, width, overflow="fold", tab_size=_TAB)]


def _stripped(line: Text) -> Text:
    line.rstrip()
    return line


def _inline(node: _Node, style: Style | None = None) -> Text:
    """The text within a block, with its styles."""
    text = Text()
    styles = [style or Style()]
    links: list[tuple[str, int]] = []
    tokens = [token for inner in node.inner for token in inner.token.children or ()]
    for token in tokens:
        match token.type:
            case "em_open" | "strong_open" | "s_open":
                styles.append(styles[-1] + _MARKS[token.type])
            case "em_close" | "strong_close" | "s_close":
                styles.pop()
            case "link_open":
                links.append((str(token.attrs.get("href", "")), len(text)))
            case "link_close":
                url, start = links.pop()
                url = neutralize(url)
                if text.plain[start:] != url:
                    text.append(f" ({url})", styles[-1] + _URL)
            case "image":
                text.append(neutralize(f"{token.content} ({token.attrs.get('src', '')})".lstrip()), styles[-1])
            case "softbreak" | "hardbreak":
                text.append("\n")
            case "code_inline":
                text.append(neutralize(token.content), styles[-1] + _CODE)
            case _:
                text.append(neutralize(token.content), styles[-1])
    return text
