"""The supervisor: starts the services, watches them, carries out operations, ends the machine and leaves nothing.

One thread, one loop. Each part is a file, which knows those above it in this list and none below:

    supervised  one service as it is known here
    condition   the machine as a whole as it is known here: the record that the parts share
    runs        operations under way
    ending      the machine's end
    run_state   whether the guest runs, what stops it, and its own reset
    lives       the services' processes: begin, end, next life, another program, devices that come and go
    health      what they report, and owe an answer for
    notices     what they say unasked
    supervisor  the loop, and the port that all doors share
"""
