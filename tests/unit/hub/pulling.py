"""python pulling.py: find the model "tiny" of the catalog on standard input, as JSON. Tests run it to break it off."""

import json
import sys

from huggingface_hub import constants

from pyllm import hub
from pyllm.hub import catalog

constants.DOWNLOAD_CHUNK_SIZE = 10_000  # what is written at once: the tests' files are small
found = catalog.parse(json.load(sys.stdin))
catalog.load = lambda: found  # type: ignore[assignment]
print(hub.resolve("tiny"))
