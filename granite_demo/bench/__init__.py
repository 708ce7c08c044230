"""Measures this machine: how fast answers come, beside transformers' documented ways and beside what memory allows.

Every figure of a report comes from one run, in turns, since only figures of one run can be compared. The engine is
measured without a page; only ``page`` needs the packages of the server.
"""
