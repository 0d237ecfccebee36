"""Replicas of the server on Ray: `application(ServeOptions(models=("NAME",)), replicas=2)` is run by Ray Serve.

Requests go to the replica that has read most of their prompt already, unless it has much more to do than others.
"""

from __future__ import annotations

try:
    import ray.serve  # noqa: F401  # what is missing is said here, once
except ImportError as error:
    raise ImportError(f'ray is not installed ({error}); pip install "pyllm[ray]" brings it', name=error.name) from error

from pyllm.config.serving import ServeOptions
from pyllm.ray.application import application
from pyllm.ray.router import PrefixRouter

__all__ = ["PrefixRouter", "ServeOptions", "application"]
