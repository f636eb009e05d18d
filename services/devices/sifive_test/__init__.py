"""sifive-test: the `virt` board's way to switch the machine off or to reset it.

Device tree binding "sifive,test0", with the commands that OpenSBI and Linux (syscon-poweroff, syscon-reboot)
write.
"""
