"""Inference servers: a client of the interface that SGLang speaks, and a small server of it."""
