"""The cache: the memory service of a cpu that is on another host than RAM (proto/vmesh/v1/memory.proto: CACHE)."""
