"""A simulated CYGNO DAQ, wire-identical to the school's: something real to run against.

Nothing on the run path imports it.
"""
