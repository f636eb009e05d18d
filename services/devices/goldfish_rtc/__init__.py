"""goldfish-rtc: the clock of the `virt` board, in nanoseconds since 1970, with one alarm.

Registers as in the Android emulator's goldfish platform bus document ("RTC device") and Linux's
drivers/rtc/rtc-goldfish.c.
"""
