"""Checks of numerics: one policy of closeness for the library's tests, the command and users."""
