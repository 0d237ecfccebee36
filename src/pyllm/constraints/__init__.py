"""Constraints: answers that a schema, a regular expression or a grammar admits, and calls as a dialect writes them.

`grammar.py` and `tools.py` make grammars, `constraint.py` holds one sequence to a grammar, `pool.py` computes the
masks of a step. llguidance does the parsing; it is imported at first use.
"""
