"""Examples: short scripts, and the training of a small GPT in ``examples.gpt``."""
