"""The noise coin of a search: one for all its documents, or one for each of them."""

from dataclasses import replace

from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import SearchRequest


def with_coin_tossed(request: SearchRequest, key: SampleKey, *, per_document: bool) -> SearchRequest:
    """Return the request, noisy with probability ``request.noise_probability``. Equal keys, equal coins.

    With ``per_document`` every document has a coin of its own.
    """
    if per_document:
        coins = (key.uniform(f"noise/{number}") for number in range(request.num_documents))
        flags = tuple(coin < request.noise_probability for coin in coins)
        return replace(request, noisy=any(flags), noisy_documents=flags)
    return replace(request, noisy=key.uniform("noise") < request.noise_probability)
