"""Converts a request to token ids."""
