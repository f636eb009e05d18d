"""gdb's remote serial protocol (gdb's manual, appendix E), in the monitor: docs/gdb.md."""
