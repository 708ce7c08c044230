"""Chooses the next token from the logits of a model."""
