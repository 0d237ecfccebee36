"""A smaller file of a model: python examples/quantizing.py SOURCE.gguf TARGET.gguf [RECIPE]"""

import os
import sys

import pyllm

source, target = sys.argv[1:3]
recipe = sys.argv[3] if len(sys.argv) > 3 else "Q4_K_M"

try:
    pyllm.quantize(source, target, recipe, on_tensor=lambda result: print(result.name, result.format))
except pyllm.PyllmError as error:
    sys.exit(f"error: {error}")
print(f"{os.path.getsize(source):,} bytes became {os.path.getsize(target):,}")
