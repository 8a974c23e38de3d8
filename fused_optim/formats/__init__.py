"""Storage formats: codecs, their names, state tensors in them, and conversion between them."""
