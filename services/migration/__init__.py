"""migration: carries a machine to another process or into a file. It coordinates, and holds no state of the guest.

The monitor starts it when it is first needed, and carries out what it asks for: pause, save, load, go on.
"""
