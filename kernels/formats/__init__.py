"""Storage formats in Triton: the counterpart of fused_optim/formats/."""
