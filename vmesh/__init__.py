"""vmesh: a RISC-V `virt` machine whose parts are processes that exchange protobuf over ZeroMQ.

What every process stands on, and what the author of a device in another repository imports.
"""

__version__ = "0.1.0"
