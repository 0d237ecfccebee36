"""Writes chat.json: what transformers renders from chat templates of 25 models, for the conversations of
tests/unit/chat_conversations.py: a digest of each text, or the error's name where transformers fails. And
chat_continued.json: the same for last messages that are continued (`continue_final_message`).

Needs `pip install transformers jinja2` (5.24.0 was used; no torch), and the templates of ../shared/data.

    python tests/golden/make_chat.py ../shared/data/templates
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "unit"))

import chat_conversations as conversations  # noqa: E402


def main() -> None:
    found, continued = {}, {}
    for path in sorted(Path(sys.argv[1]).glob("*.jinja")):
        template = _compile_jinja_template(path.read_text("utf-8"))
        texts = {}
        for case in conversations.CASES:
            try:
                text = template.render(**conversations.variables(case))
                texts[case] = hashlib.sha256(text.encode()).hexdigest()[:16]
            except Exception as error:
                texts[case] = type(error).__name__
        found[path.name] = texts
        texts = {}
        for begun in conversations.BEGUN:
            try:
                chat = conversations.begun(begun)
                (text,), _ = render_jinja_template(
                    [chat],
                    chat_template=path.read_text("utf-8"),
                    continue_final_message=True,
                    strftime_now=conversations.DAY.strftime,
                    **conversations.TOKENS,
                )
                texts[begun] = hashlib.sha256(text.encode()).hexdigest()[:16]
            except Exception as error:
                texts[begun] = type(error).__name__
        continued[path.name] = texts
    (HERE / "chat_continued.json").write_text(json.dumps(continued, indent=1) + "\n", "utf-8")
    (HERE / "chat.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
