"""The ledger's rules, from the settings of a run: trainer and scheduler must hold the same."""

from asearch.configuration.settings import RunSettings
from asearch.learning.ledger import LedgerRules


def ledger_rules(run: RunSettings) -> LedgerRules:
    """What the fold of OUTCOMES depends on."""
    return LedgerRules(
        groups_per_step=run.groups_per_step,
        max_refills=run.max_refills,
        eta=run.eta,
        rule=run.rule,
        min_graded=run.min_graded,
        # A run that was begun before it could say so discards.
        equal_rewards=run.equal_rewards or "discard",
    )
