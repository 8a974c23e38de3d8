"""The native backend: a compiler from Triton kernels to machine code for the CPU.

frontend.py translates a kernel to TTIR by Triton's front end; ttir.py parses TTIR; lowering.py
writes LLVM IR; codegen.py compiles it by llvmlite to an object, which elf.py converts to an image;
image.py loads the image into memory. cache.py stores images on disk: a process whose images are
cached needs only compiler.py, cache.py and image.py.
"""
