"""Device code. The folder kernels/ is installed as the package fused_optim.kernels."""

# another package on PyPI is named "kernels": this folder must never shadow it
if __name__ != "fused_optim.kernels":
    raise ImportError("the folder kernels/ is the package 'fused_optim.kernels'")
