"""Measures speed and memory, and compares them with the documented use of transformers and the limit of the memory.

All figures of a report come from one run in which the methods take turns, because only such figures can be compared.
The engine is measured without a server. Only the suite ``page`` needs the packages of the server.
"""
