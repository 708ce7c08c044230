"""Engines: token ids in, token ids out. One thread owns the model, and all other code uses queues."""
