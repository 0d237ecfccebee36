"""Evaluation of a model's predictions on a text: perplexity, KL divergence, and the scoring of logits for both."""
