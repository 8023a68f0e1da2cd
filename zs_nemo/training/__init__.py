"""megatron-core: model, schedule, policy, reference, checkpoints. The only importer of megatron."""
