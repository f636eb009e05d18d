"""Native code from Python sources: a typed subset of Python, compiled to machine code by LLVM.

``lang`` is the language (types and intrinsics), ``compiler`` turns functions into LLVM IR text (``source`` reads them,
``frame`` has statements and expressions, ``builder`` and ``intrinsics`` emit), ``build`` turns IR into a
position-independent blob, and ``blob`` loads it. Nothing here knows a guest ISA.
"""
