"""Engines in which requests take turns, one token at a time."""
