"""virtio-net: the network card (virtio 1.2, 5.1), with one pair of queues and no control queue.

What it is plugged into is a netdev (vmesh/netdev/). What holds when its process is killed at any instruction: nothing
that the guest was given or gave is done twice or mixed up in its memory. On the wire, what was sent last, at most
`device.BATCH` frames, may be sent once more, and what the netdev had half sent or had received is lost: a network
allows both, and its protocols expect them.
"""
