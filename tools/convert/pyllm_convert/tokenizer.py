"""The vocabulary of a Hugging Face folder as GGUF metadata: every key `tokenizer.*`.

Keys and values are those that llama.cpp's converter writes. Where it tells a pre-tokenizer by what it gives for a test
text, here the steps that `tokenizer.json` states are compared with those that pyllm knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyllm.errors import TokenizerError
from pyllm.gguf.types import ValueType
from pyllm.gguf.writer import Value
from pyllm.tokenizers.vocab import ends_generation
from pyllm_convert.tokenizer_files import TokenizerFiles, content, read_json, read_text
from pyllm_convert.tokenizer_pre import steps
from pyllm_convert.tokenizer_vocab import VocabTable, vocab_table

_ROLES = {  # by the name in the folder's files, the one in GGUF's keys
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask",
    "eot": "eot", "eom": "eom",
}  # fmt: skip


def tokenizer_metadata(folder: Path, config: Mapping[str, Any]) -> dict[str, Value]:
    """Keys `tokenizer.ggml.*` and `tokenizer.chat_template` for the model in `folder`; `config` is its config.json.

    Raises TokenizerError: no vocabulary, damaged files, a pre-tokenizer or normalizer that GGUF or pyllm has no word
    for, more tokens than the model has rows for.
    """
    files = TokenizerFiles.read(folder, config)
    table = vocab_table(files)
    values: dict[str, Any] = {"model": table.model, "pre": table.pre, "tokens": table.texts}
    values["token_type"] = np.array(table.types, np.int32)
    if table.scores is not None:
        with np.errstate(over="ignore"):
            values["scores"] = np.array(table.scores, np.float32)
    if table.merges is not None:
        values["merges"] = Value(ValueType.ARRAY, table.merges, ValueType.STRING)
    settings = table.settings | _roles(files, table)
    charsmap = settings.pop("precompiled_charsmap", None)
    if charsmap is not None:
        settings["precompiled_charsmap"] = np.frombuffer(charsmap, np.uint8)
    values |= settings
    out = {f"tokenizer.ggml.{key}": v if isinstance(v, Value) else Value.of(v) for key, v in values.items()}
    return out | {key: Value.of(value) for key, value in _templates(files)}


def _roles(files: TokenizerFiles, table: VocabTable) -> dict[str, Any]:
    """Ids of tokens with a role, and which of them are added to a text."""
    ids = {text: i for i, text in reversed(list(enumerate(table.texts)))}
    found: dict[str, int] = {}
    for stated in (files.settings, files.special_map):
        for name in _ROLES:
            text = content(stated.get(f"{name}_token"))
            if text is not None and text in ids:
                found.setdefault(name, ids[text])
    of_text = files.config.get("text_config")
    configs: list[Mapping[str, Any]] = [files.config, of_text if isinstance(of_text, dict) else {}, files.generation]
    ends: list[int] = []
    for source in configs:
        for name in _ROLES:
            several = _ids(source.get(f"{name}_token_id"), len(table.texts))
            if several:
                found.setdefault(name, several[0])
            if name == "eos":
                ends += several
    add = _added_to_text(files, ids, found)
    if table.model == "bert":
        add = {}  # CLS before and SEP after are what the kind means
        found.setdefault("bos", found.get("cls", -1))
        found.setdefault("eos", found.get("sep", -1))
    further = [i for i in dict.fromkeys(ends) if i != found.get("eos") and not ends_generation(table.texts[i])]
    for name, token_id in zip((n for n in ("eot", "eom") if n not in found), further, strict=False):
        found[name] = token_id
    return {f"{_ROLES[name]}_token_id": i for name, i in found.items() if i >= 0} | {
        f"add_{name}_token": value for name, value in add.items()
    }


def _ids(value: Any, n: int) -> list[int]:
    """Ids of a configuration's number or list of numbers, those that the vocabulary has."""
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < n]


def _added_to_text(files: TokenizerFiles, ids: Mapping[str, int], found: dict[str, int]) -> dict[str, bool]:
    """Whether BOS and EOS are added: as tokenizer.json's last step says, else as tokenizer_config.json says.

    A token that the step adds is BOS or EOS, whatever other files call so.
    """
    add: dict[str, bool] = {}
    for name in ("bos", "eos"):
        stated = files.settings.get(f"add_{name}_token")
        if isinstance(stated, bool):
            add[name] = stated
    if files.tokenizer is None:
        return add
    processors = list(steps(files.tokenizer.get("post_processor")))
    if not processors or "post_processor" not in files.tokenizer:
        return {"bos": False, "eos": False} | add
    for step in processors:
        kind = step.get("type")
        if kind in ("BertProcessing", "RobertaProcessing"):
            add |= {"bos": True, "eos": True}
        elif kind == "TemplateProcessing":
            add |= _template_adds(step, ids, found)
        elif kind == "ByteLevel":
            add = {"bos": False, "eos": False}
    return add


def _template_adds(step: Mapping[str, Any], ids: Mapping[str, int], found: dict[str, int]) -> dict[str, bool]:
    single = step.get("single")
    if not isinstance(single, list) or not all(isinstance(item, dict) for item in single):
        raise TokenizerError("tokenizer.json has a template of added tokens that is no list; the file is damaged")
    add = {}
    sequences = [i for i, item in enumerate(single) if "Sequence" in item]
    at = sequences[0] if sequences else len(single)
    for name, items in (("bos", single[:at]), ("eos", single[at + 1 :])):
        names = [special.get("id") for item in items if isinstance(special := item.get("SpecialToken"), dict)]
        add[name] = bool(names)
        if len(names) > 1:
            raise TokenizerError(
                f"tokenizer.json adds {' and '.join(map(str, names))} to a text; GGUF can say so of one"
            )
        if names and isinstance(names[0], str) and names[0] in ids:
            stated = found.get(name)
            found[name] = ids[names[0]]
            if name == "eos" and stated is not None and stated != found[name]:
                found.setdefault("eot", stated)
    return add


def _templates(files: TokenizerFiles) -> Iterator[tuple[str, str | list[str]]]:
    """Chat templates: the default one, and further ones by name."""
    folder = files.folder
    template: Any = files.settings.get("chat_template")
    if template is None:
        template = read_json(folder / "chat_template.json").get("chat_template")
    named: dict[str, str] = {}
    if isinstance(template, str):
        named["default"] = template
    elif isinstance(template, list):
        pairs = [(e.get("name"), e.get("template")) for e in template if isinstance(e, dict)]
        named |= {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    if (folder / "chat_template.jinja").is_file():
        named["default"] = read_text(folder / "chat_template.jinja")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        named[path.stem] = read_text(path)
    named = {name: text for name, text in named.items() if text.strip()}
    if "default" in named:
        yield "tokenizer.chat_template", named.pop("default")
    names = sorted(name for name in named if name.replace("_", "").replace("-", "").isalnum())
    if names:
        yield "tokenizer.chat_templates", names
    for name in names:
        yield f"tokenizer.chat_template.{name}", named[name]
