"""Training of the small GPT of ``examples/gpt`` sharded by FSDP2: ``examples/train_fsdp2.py``."""
