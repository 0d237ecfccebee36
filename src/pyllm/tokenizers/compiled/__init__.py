"""Encoding of long texts by compiled code, without blocking other threads; the ids equal those of the plain code."""
