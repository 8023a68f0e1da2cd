"""vLLM engines: token ids in, token ids and logprobs out. The only importer of vllm."""
