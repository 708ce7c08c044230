"""Requests take turns, token by token, over one runner."""
