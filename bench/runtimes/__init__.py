"""Node and OpenJDK in a Debian guest: their start, their compilers, and computing; vmesh and QEMU by turns."""
