"""What vmesh claims, measured beside the peers in the same run: `python -m bench --help`."""
