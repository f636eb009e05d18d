"""The cpu's side of the bus (proto/vmesh/v1/bus.proto)."""
