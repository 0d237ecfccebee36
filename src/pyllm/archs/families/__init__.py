"""Families: functions that make a `Decoder` from a file's hyper-parameters, found by name in `ARCHITECTURES` tables."""
