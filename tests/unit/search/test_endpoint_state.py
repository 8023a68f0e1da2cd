"""What is expected of an endpoint that has failed."""

import pytest

from zs_nemo.search.endpoint_state import Circuit


@pytest.fixture
def circuit() -> Circuit:
    circuit = Circuit(failures_to_open=2, open_s=5.0)
    for _ in range(2):
        circuit.failed(10.0)
    assert circuit.is_open
    return circuit


def test_an_endpoint_that_nobody_looks_after_is_worth_another_request_after_its_rest(circuit: Circuit) -> None:
    assert circuit.is_hopeless(14.9, is_looked_after=False)
    assert not circuit.is_hopeless(15.0, is_looked_after=False)
    circuit.failed(15.0, was_probe=True)
    assert circuit.is_hopeless(19.9, is_looked_after=False)


def test_one_that_is_looked_after_is_hopeless_until_a_health_check_finds_it_well(circuit: Circuit) -> None:
    assert circuit.is_hopeless(1000.0, is_looked_after=True)
    circuit.is_up_again(1000.0)
    assert not circuit.is_hopeless(1000.0, is_looked_after=True)
    circuit.failed(1001.0, was_probe=True)
    assert circuit.is_hopeless(1010.0, is_looked_after=True), "well by its health check alone"
    circuit.succeeded()
    assert not circuit.is_hopeless(1010.0, is_looked_after=True)


def test_one_failure_is_no_reason_for_despair() -> None:
    circuit = Circuit(failures_to_open=2, open_s=5.0)
    circuit.failed(10.0)
    assert not circuit.is_hopeless(10.0, is_looked_after=True)
