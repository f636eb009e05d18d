"""The devices, a folder and a process each, with the same files: device.py (the model), __main__.py (its command)."""
