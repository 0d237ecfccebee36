"""How well a model predicts a text: perplexity, KL divergence, and the rows of logits that both score."""
