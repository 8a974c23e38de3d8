"""Backends, which update the rows of a bucket; ``base`` has the protocol, ``select`` the choice."""
