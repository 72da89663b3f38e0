"""Benchmarks: each runs alone, measures its peer in the same run, and prints a table.

With `--json` the last line of output is one JSON object.
"""
