"""Scoring of rows of logits: likelihoods of tokens, and KL divergence between two models."""

from pyllm.evaluation.scoring.rows import RowScores, Scorer, coded_width

__all__ = ["RowScores", "Scorer", "coded_width"]
