"""Arguments of `kernels/experts.py`. A slot is a token at one of its experts; sorted by expert, slots become rows."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows, Written, WrittenAddress


class Route(Arguments):
    """The experts of each token and their weights, best first."""

    logits: Rows
    n_experts: int
    n_used: int
    chosen: WrittenAddress
    """int32 [tokens, n_used]."""
    weights: WrittenAddress
    """float32 [tokens, n_used]."""
    normalize: int
    """1: weights of a token sum to `factor`."""
    factor: float
    bias: Address | None = None
    """float32 [experts], for the choice alone."""
    sharing: int = 1
    """Experts that share matrices: what is chosen is the number of these, and its weight that of this number."""
    n_groups: int = 0
    """Of experts, of which the best `n_groups_used` are chosen from; 0: from all."""
    n_groups_used: int = 0
    rows: Address
    """Range of tokens."""
    scratch: Rows
    """Of 8 bytes an expert and 4 a group."""


class Sort(Arguments):
    """Slots by expert."""

    chosen: Address
    n_used: int
    n_experts: int
    ranges: WrittenAddress
    """A range for each expert, then one for all rows."""
    slot_of: WrittenAddress
    """int32 slot of each row."""
    row_of: WrittenAddress
    """int32 row of each slot."""
    rows: Address
    """Range of tokens."""


class Gather(Arguments):
    """Each row's input: a copy of its token's record or numbers."""

    x: Rows
    y: Written
    """Its `ld` is a multiple of 64."""
    n_used: int
    slot_of: Address
    rows: Address
    """Range of all rows."""


class Adjust(Arguments):
    """x[row] = x[row] * scale[expert] + bias[expert], in place."""

    x: Rows
    scales: Address
    """float32 [experts]."""
    biases: Address | None = None
    bias_stride: int = 0
    """Bytes from one expert's biases to the next's."""
    chosen: Address
    slot_of: Address
    columns: int
    rows: Address
    """Range of all rows."""


class Weigh(Arguments):
    """x[row] = x[row] * weight[slot], in place."""

    x: Rows
    weights: Address
    slot_of: Address
    columns: int
    rows: Address
    """Range of all rows."""


class Combine(Arguments):
    """y[t] = residual[t] + sum over j of weight[t, j] * x[row of slot (t, j)], in the order of the choices."""

    x: Rows
    y: Written
    residual: Rows | None = None
    weights: Address | None
    """None: all are 1."""
    n_used: int
    row_of: Address
    columns: int
    rows: Address
    """Range of tokens."""
