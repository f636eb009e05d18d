"""The flags of `vmesh run`, in QEMU's spelling: table.py says each once; the rest follows."""
