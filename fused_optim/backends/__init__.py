"""Backends: each updates the rows of a bucket; ``select`` chooses, ``base`` has the protocol."""
