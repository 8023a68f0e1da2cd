"""How an endpoint is reached, and what its errors may tell."""

import pytest

from zs_nemo.search.endpoint_health import proxy_for, redacted


@pytest.mark.parametrize(
    ("address", "proxy"),
    [
        ("https://far.example/v1", "http://proxy:3128"),
        ("http://far.example/v1", None),
        ("https://near.example:8000/v1", None),
        ("https://127.0.0.1:8000/v1", None),
        ("https://localhost:8000/v1", None),
        ("https://[::1]:8000/v1", None),
    ],
)
def test_a_proxy_is_what_the_environment_names_but_never_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, address: str, proxy: str | None
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "near.example")
    assert proxy_for(address) == proxy


def test_neither_the_key_nor_what_a_proxys_address_holds_is_told() -> None:
    text = "407, url='http://user:hunter2@proxy:3128'\n bearer sk-1"
    assert redacted(text, "sk-1") == "407, url='http://***@proxy:3128' bearer ***"
