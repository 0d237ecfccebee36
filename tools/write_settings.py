"""Writes what is made from settings: in src/pyllm/config, `SamplingParams` from the steps of sampling (sampling.py) and
the keyword options that type checkers see (options.py); the options in `pyllm.load`'s docstring; the table of
docs/sampling.md.

    python tools/write_settings.py

A test compares the files with what this would write.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyllm.config import GenerateSettings, LoadSettings, PlacementOptions
from pyllm.config.setting import Setting, settings_of
from pyllm.sampling.general import all_settings
from pyllm.sampling.steps import Step, all_steps

_ROOT = Path(__file__).resolve().parents[1]
_CONFIG = _ROOT / "src" / "pyllm" / "config"
_PAGE = _ROOT / "docs" / "sampling.md"
_OPENING = _ROOT / "src" / "pyllm" / "llm" / "opening.py"
_WIDTH = 120

_SAMPLING = '''\
"""The settings of sampling. Written by `python tools/write_settings.py`; change `pyllm/sampling`, not this file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

from pyllm.arguments import settle
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen: the steps from logits to a token, each left out at its neutral value.

    Steps run in the order of their fields, unless `samplers` says otherwise.
    """

'''
_OPTIONS = '''\
"""Keyword options as type checkers see them. Written by `python tools/write_settings.py`; change the settings, not this
file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from pyllm.arguments import FilePath
from pyllm.config.loading import AdapterChoice, GPULayers, KVDtype, Progress, Size
from pyllm.config.sampling import SamplingParams
'''


def files() -> dict[Path, str]:
    """The files, and what is to be in them."""
    return {
        _CONFIG / "sampling.py": _sampling(),
        _CONFIG / "options.py": _options(),
        _OPENING: _between(_OPENING, "    Options:\n\n", "\n    Raises ", _described(_of_loading())),
        _PAGE: _between(_PAGE, "<!-- steps -->\n", "<!-- end of steps -->\n", _table()),
    }


def _sampling() -> str:
    """The class of the settings of sampling."""
    settings = all_settings()
    lines = [_field(setting) for setting in settings]
    lines.append("\n    def __post_init__(self) -> None:\n        settle(self)\n")
    lines += [
        f"        if self.{s.name} == -1:\n            object.__setattr__(self, {s.name!r}, {s.minus_one!r})\n".replace(
            "'", '"'
        )
        for s in settings
        if s.minus_one != -1
    ]
    return _SAMPLING + "".join(lines)


def _field(setting: Setting) -> str:
    default = repr(setting.default)
    if setting.default == {}:
        default = "field(default_factory=dict)"
    elif isinstance(setting.default, tuple):
        default = "(" + ", ".join(_text(v) for v in setting.default) + ("," if len(setting.default) == 1 else "") + ")"
    return f"    {setting.name}: {setting.type} = {default}\n{_docstring(setting.doc)}"


def _docstring(text: str) -> str:
    body = textwrap.wrap(text.replace("\\", "\\\\") + '"""', _WIDTH, initial_indent='    """', subsequent_indent="    ")
    return "\n".join(body) + "\n"


def _text(value: str) -> str:
    text = repr(value)
    return text if '"' in value else '"' + text[1:-1] + '"'


def _options() -> str:
    """The classes of keyword options."""
    of_sampling = "".join(f"    {s.name}: {s.keyword_type}\n" for s in all_settings())
    return (
        _OPTIONS
        + "\n\nclass SamplingOptions(TypedDict, total=False):\n"
        + '    """The fields of `SamplingParams`, where they and their defaults are described. None: as if it were not '
        + f'given."""\n\n{of_sampling}'
        + "\n\nclass GenerateOptions(SamplingOptions, total=False):\n"
        + '    """Keyword options of `LLM.complete`, `LLM.chat` and `LLM.generate`."""\n\n'
        + _entries(settings_of(GenerateSettings))
        + "\n\nclass LoadOptions(TypedDict, total=False):\n"
        + '    """Keyword options of `pyllm.load`."""\n\n'
        + _entries(_of_loading())
    )


def _of_loading() -> list[Setting]:
    """Settings of loading, those of placement last."""
    placement = settings_of(PlacementOptions)
    return [*(s for s in settings_of(LoadSettings) if s not in placement), *placement]


def _entries(settings: Iterable[Setting]) -> str:
    return "".join(f"    {s.name}: {s.keyword_type}\n{_docstring(s.doc)}" for s in settings)


def _described(settings: Iterable[Setting]) -> str:
    """Settings in a docstring."""
    return "".join(
        textwrap.fill(f"`{s.name}`: {s.doc}", _WIDTH, initial_indent="    ", subsequent_indent="    ") + "\n"
        for s in settings
    )


def _table() -> str:
    """The table of the steps."""
    return "\n" + "".join(f"{row}\n" for row in _rows()) + "\n"


def _rows() -> Iterator[str]:
    yield "| in `samplers` | settings and defaults | what it does | source |"
    yield "|---|---|---|---|"
    yield from map(_row, all_steps())


def _row(step: type[Step]) -> str:
    settings = ", ".join(f"`{s.name}` {_default(s.default)}".rstrip() for s in step.settings)
    text = " ".join((step.__doc__ or "").split())
    return f"| `{step.name()}` | {settings} | {text} | {step.source} |".replace(" |d", " \\|d")


def _default(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else ""


def _between(path: Path, begin: str, end: str, text: str) -> str:
    """A file whose part between two lines is `text`."""
    before, rest = path.read_text(encoding="utf-8").split(begin)
    return f"{before}{begin}{text}{end}{rest.split(end, 1)[1]}"


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
