"""`make chaos`: the real system under load, with one thing after the other broken on purpose.

world.py runs it and keeps account, store.py is an object store that can be told to misbehave,
faults.py says what is done, and __main__.py prints the table.
"""
