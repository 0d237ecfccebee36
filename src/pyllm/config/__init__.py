"""Frozen settings, each with its default, meaning and bounds; keywords, flags and reference are made from them.

They can be pickled. A value of the wrong type raises RequestError; None stands for the default.
"""

from __future__ import annotations

from pyllm.config.execution import ExecutionOptions
from pyllm.config.generation import GenerateSettings
from pyllm.config.loading import (
    AdapterChoice,
    GPULayers,
    KVDtype,
    LoadSettings,
    PlacementOptions,
    Progress,
)
from pyllm.config.sampling import SamplingParams

__all__ = [
    "AdapterChoice",
    "ExecutionOptions",
    "GPULayers",
    "GenerateSettings",
    "KVDtype",
    "LoadSettings",
    "PlacementOptions",
    "Progress",
    "SamplingParams",
]
