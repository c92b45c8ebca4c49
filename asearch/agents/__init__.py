"""Search agents as pure episode state machines: `(state, fact) -> (state, requests)`."""
