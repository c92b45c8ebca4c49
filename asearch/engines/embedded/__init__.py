"""A server of SGLang's HTTP interface for small models on CPU: torch, continuous batching, no compiled code."""
