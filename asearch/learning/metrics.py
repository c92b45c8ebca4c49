"""The numbers that an update reports in `StepTrained.metrics`, and what each says. Torch-free."""

OF_TOKENS = {
    "loss": "Sum of the loss over the loss tokens over the divisor of the normalisation",
    "logprob": "Log-probability of a loss token under the policy in training, in nats",
    "entropy": "Entropy of the policy at a loss token, in nats",
    "logprob_difference": "Distance of engine's and trainer's log-probability of a token before the update, in nats",
    "logprob_difference_max": "The largest of these distances",
    "kl_k1": "KL(engine's policy ‖ trainer's before the update), by the plain log ratio, in nats; of either sign",
    "kl_k3": "The same by the estimator of low variance, which is never negative",
    "kl_reference": "KL(policy ‖ reference policy), by the estimator of `kl_estimator`; where there is a reference",
    "policy_ratio": "Ratio of the objective: policy over old policy",
    "behaviour_weight": "Constant weight of a token's loss: that of the correction, 1 without one",
    "clip_fraction": "Share of tokens whose ratio, or weight under CISPO, was clipped",
    "dual_clip_fraction": "Share whose loss the dual clip bounded; where there is one",
    "behaviour_capped_fraction": "Share whose weight was above `behaviour_cap`",
    "rejected_fraction": "Share that `rejection` left out",
}
"""Means over the loss tokens of an optimizer step, averaged over those of the update; maxima where the name ends in `_max`."""

OF_CRITIC = {
    "value_loss": "Loss of the critic",
    "value_clip_fraction": "Share of tokens whose value moved more than `value_clip`",
    "value": "Value before the update",
    "return": "What the critic is to learn: advantage plus value",
    "value_error": "Distance of the two",
    "critic_grad_norm": "Norm of the critic's gradient",
}
"""Means over the loss tokens, under the advantage `gae`."""

OF_BATCH = {
    "n_groups": "Groups of the batch",
    "n_episodes": "Episodes of the batch",
    "n_segments": "Segments of the batch",
    "n_tokens_forwarded": "Tokens that the model read",
    "n_micro_batches": "Micro-batches of all optimizer steps, on average",
    "reward_mean": "Mean reward",
    "reward_std": "Its standard deviation",
    "advantage_abs_mean": "Mean size of an episode's advantage; of its reward under `gae`",
    "dead_lineage_tokens": "Trained tokens of abandoned steps",
    "masked_stale_fraction": "Share of the tokens to be trained that the staleness rule left out",
    **{f"masked_stale_decile_{i}": f"Tokens left out as stale in decile {i} of episode length" for i in range(10)},
    "grad_norm": "Norm of the gradient before clipping",
    "lr": "Learning rate",
    "tokens_per_s": "Tokens read by second of the step",
    "peak_memory_bytes": "Most memory that a rank's GPU has had in use; on CUDA",
}

STEP_METRICS = OF_TOKENS | OF_CRITIC | OF_BATCH

WATCHED = (
    "entropy",
    "kl_k3",
    "kl_reference",
    "logprob_difference",
    "logprob_difference_max",
    "clip_fraction",
    "dual_clip_fraction",
    "behaviour_capped_fraction",
    "rejected_fraction",
    "masked_stale_fraction",
    "value_error",
    "grad_norm",
)
"""Those that show first that learning goes wrong: they are scraped, and drawn on the page."""
