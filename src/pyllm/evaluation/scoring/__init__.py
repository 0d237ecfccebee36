"""What rows of logits say about tokens: likelihoods, and how far two models' distributions are apart."""

from pyllm.evaluation.scoring.rows import RowScores, Scorer, coded_width

__all__ = ["RowScores", "Scorer", "coded_width"]
