"""Settings classes: what is said once is what keywords, checks, flags and reference say."""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

import pyllm
from pyllm.cli import _settings
from pyllm.config import GenerateSettings, LoadSettings, PlacementOptions
from pyllm.config.options import GenerateOptions, LoadOptions, SamplingOptions
from pyllm.config.setting import Setting, setting, settings_of
from pyllm.errors import RequestError
from pyllm.sampling.general import all_settings

SETTINGS: list[Setting] = [*settings_of(LoadSettings), *settings_of(GenerateSettings), *all_settings()]


@dataclass(frozen=True, slots=True)
class Longer(LoadSettings):
    """Settings of loading with one more, which nothing else knows."""

    n_extra: int = setting(3, "Extra things, beside `n_ctx`.", low=1, high=9, minus_one=5, flags=("-x", "--extra"))


@pytest.mark.parametrize("tool", ["write_settings.py", "write_lists.py"])
def test_files_that_are_made_are_current(tool: str) -> None:
    path = Path(__file__).parents[2] / "tools" / tool
    for file, text in runpy.run_path(str(path))["files"]().items():
        assert file.read_text(encoding="utf-8") == text, f"run `python tools/{tool}`"


def test_keyword_options_are_the_settings() -> None:
    of_sampling = {s.name for s in all_settings()}
    assert set(SamplingOptions.__annotations__) == of_sampling
    assert set(GenerateOptions.__annotations__) == of_sampling | {s.name for s in settings_of(GenerateSettings)}
    assert set(LoadOptions.__annotations__) == {s.name for s in settings_of(LoadSettings)}


@pytest.mark.parametrize("one", SETTINGS, ids=lambda one: one.name)
def test_each_setting_says_what_it_is(one: Setting) -> None:
    assert one.doc.endswith((".", "…", ")")) or "`" in one.doc
    assert one.keyword_type.endswith("| None")


def test_help_of_load_has_every_option() -> None:
    for one in settings_of(LoadSettings):
        assert f"`{one.name}`: " in str(pyllm.load.__doc__)


def test_one_more_setting_is_a_keyword_with_a_default_and_bounds() -> None:
    assert Longer.of("load", {"n_extra": None, "n_ctx": 8}) == Longer(n_ctx=8, n_extra=3)
    assert Longer(n_extra=-1).n_extra == 5
    assert Longer(n_gpu_layers=-1).placement == PlacementOptions(n_gpu_layers="auto")
    for wrong, words in ((0, "between 1 and 9, not 0"), (10, "between 1 and 9, not 10"), ("2", "a whole number")):
        with pytest.raises(RequestError, match=f"n_extra must be {words}"):
            Longer(n_extra=wrong)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"load\(\) has no option n_extr; did you mean n_extra\?"):
        Longer.of("load", {"n_extr": 1})


def test_one_more_setting_is_a_flag() -> None:
    one = settings_of(Longer)[-1]

    @click.command()
    @_settings.flags([one])
    def command(**options: Any) -> dict[str, Any]:
        return _settings.taken(options, [one])

    assert command.main(["-x", "4"], standalone_mode=False) == {"n_extra": 4}
    assert command.main([], standalone_mode=False) == {}
    with pytest.raises(click.BadParameter, match="'-2' is not a whole number of -1 or more"):
        command.main(["--extra=-2"], standalone_mode=False)
    assert "Extra things, beside --ctx.  [default: 3]" in command.get_help(click.Context(command))
