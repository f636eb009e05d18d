"""What vmesh claims, measured beside the peers in the same run: `python -P -m bench --help`."""
