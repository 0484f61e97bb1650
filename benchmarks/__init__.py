"""Speed of bnb_core next to its peers and to the machine's limits: `python -m benchmarks`, see README.md.

Start reading at `work.py` (what is measured, and what is aimed at), then `works/` (the table of all of it) and
`timing.py` (how the contestants of a work are interleaved).
"""
