"""Learning as pure functions: advantages, objectives, packing, staleness, the ledger."""
