"""The compiler of the native backend: the kernels of Triton as machine code for the CPU.

frontend.py has Triton's front end make TTIR of a kernel; ttir.py reads it; lowering.py writes LLVM
IR; codegen.py has llvmlite make machine code of that, which elf.py cuts into an image; image.py
puts it into memory. cache.py keeps it on disk, and then compiler.py, cache.py and image.py are all
that is needed.
"""
