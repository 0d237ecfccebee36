"""`run --json-schema` and `--grammar`: files or the texts themselves, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Run

FLAGS = ("--backend", "reference", "-n", "40", "--seed", "1")
SCHEMA = '{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}'
GBNF = 'root ::= "ja" | "nein"'


def test_answers_have_the_form(run: Run, model: str, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.gbnf"
    schema.write_text(SCHEMA)
    grammar.write_text(GBNF)
    for value in (str(schema), SCHEMA):
        assert json.loads(run("run", "-m", model, *FLAGS, "--json-schema", value, "hi").out)["a"] in (1, 2)
        assert json.loads(run("run", "-m", model, *FLAGS, "-j", value, "--raw", "hi").out)["a"] in (1, 2)
    for value in (str(grammar), GBNF, 'start: "ja" | "nein"'):
        assert run("run", "-m", model, *FLAGS, "--grammar", value, "hi").out.strip() in ("ja", "nein")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--json-schema", '{"a"'], "--json-schema is not JSON"),
        (["--json-schema", "none.json"], "none.json: No such file"),
        (["--json-schema", '{"uniqueItems": true}'], "cannot be held at #/uniqueItems"),
        (["--grammar", 'root ::= "a'], "grammar, line 1, column 12"),
        (["--grammar", GBNF, "--json-schema", SCHEMA], "not both"),
    ],
)
def test_errors(run: Run, model: str, flags: list[str], words: str) -> None:
    done = run("run", "-m", model, *FLAGS, *flags, "hi")
    assert done.code != 0
    assert words in done.err
    assert "Traceback" not in done.err
