"""Engines: token ids in, token ids out. One thread owns the model; everything else talks to it by queue."""
