"""Selects the fastest implementation of sampling for a device."""

import importlib.util

import torch

from granite_demo.engine.sampling.reference import Chooser, CutOff, Rows, cut_off, penalise_and_choose


def chooser(device: torch.device) -> Chooser:
    """Return the fastest ``penalise_and_choose`` for ``device``."""
    if device.type == "cpu":
        from granite_demo.engine.sampling.cpu import penalise_and_choose as on_a_cpu

        return on_a_cpu
    if device.type == "cuda" and importlib.util.find_spec("triton"):
        from granite_demo.engine.sampling.triton import penalise_and_choose as fused

        return fused
    return penalise_and_choose


def cutter(device: torch.device) -> CutOff:
    """Return the fastest ``cut_off`` for ``device``."""
    if device.type == "cpu":
        from granite_demo.engine.sampling.cpu import cut_off as on_a_cpu

        return on_a_cpu
    return cut_off


def compile_chooser(device: torch.device) -> None:
    """Compile the function of ``chooser`` with one call. The first time on a machine, this takes seconds."""
    one = torch.ones(1, device=device)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    rows = Rows(one, one, one, one, one, zero, zero)
    logits = torch.zeros((1, 8), device=device)
    chooser(device)(logits, rows, logits > 0, zero)
