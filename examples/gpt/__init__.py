"""Training of a small GPT with torch.optim and with fused_optim: ``python -m examples.gpt``."""
