"""One optimizer step: rows of tensors, buckets of rows, their update, and what is reused of it."""
