"""The migration stream as a format: records, pages, the package, and where streams go. No sockets, no processes.

proto/vmesh/v1/migration.proto says what a stream looks like. Whatever is read here is hostile until checked.
"""
