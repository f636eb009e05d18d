"""Where the frames of a network card go to and come from: the host's side of `-netdev`, in QEMU's words.

port.py      what a card and what it is plugged into know of each other
options.py   what may be asked for, and its text
frames.py    frames over a stream socket
stream.py    a stream socket to a peer: another machine, a hub, or anything that speaks as QEMU does
user.py      the host's network as seen from behind a router, by passt
tap.py       a network interface of the host
hub.py       links any number of machines
make.py      the one that was asked for
"""

USAGE = (
    "user[,hostfwd=tcp::PORT-:PORT][,net=ADDRESS/BITS][,host=ADDRESS][,dhcpstart=ADDRESS][,dns=ADDRESS][,ipv6=on|off], "
    "stream,addr.type=unix,addr.path=PATH[,server=on|off][,reconnect=SECONDS][,guest-time=on|off] or "
    "tap,ifname=NAME,script=no[,vnet_hdr=on|off]"
)
