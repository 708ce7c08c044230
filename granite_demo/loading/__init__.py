"""Loads a model from a folder on disk into memory."""
