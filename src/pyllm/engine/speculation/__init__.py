"""Speculation: next tokens are guessed cheaply, and one step verifies several; answers stay what they are without.

A drafter guesses, `Lengths` says how many guesses pay, and the engine verifies: the row of a token is used where the
token is the one chosen from the row before. So each token is chosen as without drafts, by the same sampler in the same
state, and with its own random number. Rejected drafts cost time and change nothing.
"""

from pyllm.engine.speculation.draft_model import DraftModel
from pyllm.engine.speculation.drafter import Drafter, Offer
from pyllm.engine.speculation.head import Head
from pyllm.engine.speculation.lookup import Lookup
from pyllm.engine.speculation.speculation import Speculation

__all__ = ["DraftModel", "Drafter", "Head", "Lookup", "Offer", "Speculation"]
