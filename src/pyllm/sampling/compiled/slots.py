"""Where the compiled chain finds things: offsets in bytes of 8-byte slots. A step's compiled function gets a state,
which is a thread's work memory and what is known of the row at hand."""

from __future__ import annotations

# The state. Candidates are logits X [N], of the tokens IDS [N], or of all tokens in order where IDS is 0.
X, IDS, N = 0, 8, 16
ORDER = 24
"""What their order is: one of the following."""
AS_THEY_ARE, SORTED, TO_SORT = 0, 1, 2
"""SORTED: the largest come first, equal ones by id. TO_SORT: so they would, and are drawn as if they did, but stand in
the order of their ids."""
TOP, TOP_KNOWN = 32, 40
"""The largest logit, float64."""
OWN = 48
"""Whether X may be written to, for good: it is not the caller's row."""
U = 56
"""The random number, float64."""
TOKEN = 64
"""What was chosen; -1 before."""
MEMORY = 72
"""What a last step remembers: number, the next one, second number, the next one; float64."""
BEFORE = 104
"""X before the last change of all logits."""
N_SAVED = 112
"""How many logits of the caller's row are to be put back."""
ROW = 120
"""The row's slots, below."""
N_VOCAB = 128
# Work memory.
COPY, COPY_2 = 136, 144
"""float32 [n_vocab]: logits that are not the caller's."""
LIST_X, LIST_IDS = 152, 160
"""float32, int32 [n_vocab]: candidates that are not all tokens."""
KEYS, SPARE_KEYS = 168, 232
"""int64 [n_vocab + 64]"""
PART = 176
"""float32 [n_vocab]: some of the logits."""
COUNTS = 184
"""int32 [n_vocab]: a number of each token, 0 but while a step needs it."""
TOUCHED = 192
"""int32 [n_vocab]: the tokens whose COUNTS are not 0."""
SAVED = 200
"""int32, float32 [MOST_SAVED]: tokens and their logits in the caller's row."""
REPEATS = 208
"""int32 [n_seen]: lengths of repetitions."""
SUMS = 216
"""float64 [n_vocab / SUM_BLOCK + 32]"""
OFFSET = 224
"""What is to be added to X to make logits as the model and the steps before mean them, float64."""
STATE_SLOTS = 32

MOST_SAVED = 8192
SUM_BLOCK = 1024
"""Logits whose weights are summed in float32; sums of blocks are added in float64."""

# A row.
R_X, R_IDS, R_N, R_WRITABLE = 0, 8, 16, 24
R_MASK = 32
"""int32 [ceil(n_vocab / 32)], a bit for each token, or 0."""
R_SEEN, R_N_SEEN = 40, 48
R_BIAS_IDS, R_BIAS, R_N_BIAS = 56, 64, 72
R_BANNED, R_N_BANNED = 80, 88
R_STEPS, R_N_STEPS = 96, 104
"""Steps of STEP_SLOTS slots: number, parameters as float64."""
R_GREEDY = 112
R_U = 120
R_N_VOCAB = 128
R_MEMORY = 136
R_BREAKERS = 168
"""uint8 [n_vocab] or 0: bit 0, the token is a breaker; bit 1, it begins one of several tokens."""
R_LONG_BREAKERS, R_N_LONG_BREAKERS = 176, 184
"""int32 [n, LONG_BREAKER]: length, and the tokens."""
R_TOKEN = 192
"""The token that was chosen; -1 where there is none."""
ROW_SLOTS = 26

MANY = 256
"""More of the largest logits than these are found by a threshold, which takes numbers only."""
STEP_SLOTS = 8
LONG_BREAKER = 24
