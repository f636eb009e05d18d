"""`python -P -m vmesh_services.devices.virtio_net`: the command line of the network card."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vmesh import device, errors, service
from vmesh.netdev import USAGE
from vmesh.netdev import options as netdev
from vmesh.netdev.make import make
from vmesh.netdev.port import mac_address
from vmesh.privileges import FILES, Capability
from vmesh.virtio import mmio
from vmesh_services.devices.virtio_net.device import VirtioNet


def main(argv: Sequence[str]) -> int:
    """Run the device; gives the exit status."""
    parser = mmio.parser("virtio-net", "A network card.")
    parser.add_argument("--netdev", required=True, metavar="SPEC", help=USAGE)
    parser.add_argument("--mac", default="52:54:00:12:34:56", metavar="ADDRESS")
    parser.add_argument("--host-mtu", type=service.number, default=0, metavar="BYTES", help="what the guest is told")
    options = parser.parse_args(argv)

    def build(runtime: service.Runtime) -> VirtioNet:
        try:
            asked, mac = netdev.parse(options.netdev), mac_address(options.mac)
        except ValueError as error:
            raise errors.ConfigError(str(error)) from error
        return VirtioNet(
            runtime,
            mmio.Mmio(options.base, options.irq),
            lambda port: make(asked, runtime.loop, runtime.log, port, runtime.machine.network(runtime.name)),
            mac=mac,
            mtu=options.host_mtu,
            packed=options.packed,
        )

    return device.run(options, build, capabilities=FILES | {Capability.NET_BIND_SERVICE, Capability.NET_ADMIN})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
