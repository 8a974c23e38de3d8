"""The command line ``fused-optim``, with the packages of ``fused-optim[cli]``."""
