"""Encoding of long texts by compiled code, which lets other threads run: the same ids as by the plain code."""
