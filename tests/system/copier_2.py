"""The copier of docs/examples as a later release may be: its state has version 2, and it takes version 1 too."""

from docs.examples.copier.__main__ import Copier
from vmesh import device


class Copier2(Copier):
    state_version = 2


if __name__ == "__main__":
    device.main("copier", Copier2)
