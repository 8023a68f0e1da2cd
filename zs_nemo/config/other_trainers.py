"""What other trainers call our settings, where nothing of the name is alike: for whoever types theirs.

The table of docs/cluster.md has all of them with what differs in meaning; a test holds this one against it.
"""

OURS = {
    # NeMo-Aligner
    "model.seed": "seed",
    "micro_batch_size": "policy.train_mb_tokens",
    "restore_from_path": "policy.model",
    "model.optim.name": "policy.use_distributed_optimizer",
    "offload_adam_states": "policy.optim.optimizer_cpu_offload",
    "num_rollouts_per_prompt": "rollout.num_generations_per_prompt",
    "length_params.max_length": "rollout.max_turn_tokens",
    "encoder_seq_length": "rollout.max_sequence_tokens",
    "ratio_eps": "algorithm.clip_ratio_low",
    "initial_policy_kl_penalty": "algorithm.kl.coef",
    "entropy_bonus": "algorithm.entropy_coef",
    "discount_factor": "algorithm.gamma",
    "normalize_advantages": "algorithm.whiten_advantages",
    "loss_clip_val": "algorithm.value_clip_range",
    "save_interval": "exp_manager.save_every_n_steps",
    # NeMo-RL
    "max_num_steps": "trainer.max_steps",
    "grpo.seed": "seed",
    "activation_checkpointing": "policy.activations_checkpoint_granularity",
    "policy.max_grad_norm": "policy.gradient_clip_val",
    "adam_beta1": "policy.optim.betas",
    "adam_beta2": "policy.optim.betas",
    "adam_eps": "policy.optim.eps",
    "lr_decay_style": "policy.optim.sched.name",
    "max_total_sequence_length": "rollout.max_sequence_tokens",
    "max_trajectory_age_steps": "rollout.max_staleness",
    "ratio_clip_min": "algorithm.clip_ratio_low",
    "ratio_clip_max": "algorithm.clip_ratio_high",
    "reference_policy_kl_penalty": "algorithm.kl.coef",
    "token_level_loss": "algorithm.loss_aggregation",
    "use_importance_sampling_correction": "algorithm.importance.level",
    "checkpoint_dir": "exp_manager.exp_dir",
    "save_period": "exp_manager.save_every_n_steps",
    "keep_top_k": "exp_manager.save_top_k",
    # ZeroSearch
    "actor_rollout_ref.model.path": "policy.model",
    "enable_gradient_checkpointing": "policy.activations_checkpoint_granularity",
    "ppo_mini_batch_size": "policy.global_batch_size",
    "ppo_micro_batch_size": "policy.train_mb_tokens",
    "critic.ppo_epochs": "critic.num_epochs",
    "critic.optim.lr_warmup_steps_ratio": "critic.optim.sched.warmup_ratio",
    "lr_warmup_steps_ratio": "policy.optim.sched.warmup_ratio",
    "data.train_batch_size": "rollout.num_prompts_per_step",
    "n_agent": "rollout.num_generations_per_prompt",
    "max_response_length": "rollout.max_turn_tokens",
    "max_obs_length": "rollout.max_document_tokens",
    "max_prompt_length": "rollout.max_sequence_tokens",
    "kl_loss_coef": "algorithm.kl.coef",
    "use_kl_loss": "algorithm.kl.where",
    "kl_loss_type": "algorithm.kl.estimator",
    "start_threshold": "curriculum.start_noise",
    "end_threshold": "curriculum.end_noise",
    "topk": "search.num_documents",
    "simulate_llm": "search.model",
    "reward_function": "reward.f1",
    "default_local_dir": "exp_manager.exp_dir",
    "trainer.experiment_name": "exp_manager.name",
    "save_freq": "exp_manager.save_every_n_steps",
    # Ours, once: a price beside the one that the report's account is made with.
    "price_per_search": "cost.usd_per_1000_searches",
}
"""Ours by theirs: the whole name, or its end where that is enough."""


def ours_of(key: str) -> str | None:
    """Return what ``key`` is called here; None where it is no such name of another trainer's."""
    parts = key.split(".")
    ends = (".".join(parts[first:]) for first in range(len(parts)))
    return next((OURS[end] for end in ends if end in OURS), None)
