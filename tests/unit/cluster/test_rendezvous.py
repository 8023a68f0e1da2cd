import socket

import pytest

from zs_nemo.cluster.rendezvous import usable_port


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_port_in_use_is_named_with_the_remedy(host: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"cluster\.master_port={port} cannot be used .*cluster\.master_port=0"):
            usable_port(host, port)
    assert usable_port(host, port) == port
    assert usable_port(host, 0) > 0


def test_a_port_is_of_use_while_connections_of_an_earlier_run_are_not_forgotten_yet() -> None:
    with socket.socket() as earlier:
        earlier.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        earlier.bind(("127.0.0.1", 0))
        earlier.listen()
        port = earlier.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = earlier.accept()
            # Who closes first is left with the connection in TIME_WAIT.
            accepted.close()
            assert client.recv(1) == b""
    assert usable_port("127.0.0.1", port) == port
