"""One op a module: its contract and a NumPy reference; the native twin is in `hasten._native`.

`tests/kernels` holds every instruction set of the native executor to these references.
"""
