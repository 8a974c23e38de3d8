"""Storage formats: codecs, their registry, conversion between formats, and checkpoints."""
