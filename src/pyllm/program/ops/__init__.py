"""Ops, in modules by kind. An op's rule in a backend lies in a module of the same name (docs/backends.md)."""
