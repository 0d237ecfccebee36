"""What was typed in a chat: kept in a file, and no reason to fail where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyllm.cli._lines import file_history


def test_what_was_typed_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chat_history"
    file_history(path).append_string("first\nof two lines")
    file_history(path).append_string("second")
    assert list(file_history(path).load_history_strings()) == ["second", "first\nof two lines"]


@pytest.mark.parametrize("place", ["file/chat_history", "folder"])
def test_a_history_that_cannot_be_kept_is_in_memory(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    history = file_history(tmp_path / place)
    assert list(history.load_history_strings()) == []
    history.append_string("typed")
    assert history.get_strings() == ["typed"]
