"""vmesh: a RISC-V `virt` machine whose parts are processes that exchange protobuf over ZeroMQ.

What every process stands on, and what the author of a device in another repository imports.
"""

import os

__version__ = "0.1.0"

# gRPC reads these when it is imported, whoever does it: here, as this comes before it.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors reach the user as one line of ours; its log would come between
# Its handlers of fork(2) wait for its threads, now and then for ever. Nobody here takes a call across a fork.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
