"""One optimizer step: rows of tensors, buckets of rows, their update, and the cache of a step."""
