"""The port at which training ranks meet. Imports nothing heavy: actors look for it before they import anything else."""

import socket


def usable_port(host: str, port: int) -> int:
    """Return ``port`` or, for 0, a free one of this machine; ``host`` is the address it is for, empty for all.

    Raises ``ValueError`` when it is in use.
    """
    with socket.socket() as probe:
        # As torch does: connections of an earlier run that are not forgotten yet take no port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, port != 0)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"cluster.master_port={port} cannot be used ({error.strerror}); "
                "set cluster.master_port=0 for any free port, or end the process that holds it"
            ) from error
        return int(probe.getsockname()[1])
