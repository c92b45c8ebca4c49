"""DAPO's soft overlong punishment: what an episode's reward loses for its length."""


def overlong(n_tokens: int, max_tokens: int, cache_tokens: int) -> float:
    """From 0 to -1: 0 up to `max_tokens` - `cache_tokens` tokens, linear over the `cache_tokens` after them, then -1.

    DAPO (arXiv 2503.14476, Eq. 13), |y| being the tokens that the policy generated in all turns of the episode.
    """
    return 0.0 - min(1.0, max(0, n_tokens - (max_tokens - cache_tokens)) / cache_tokens)
