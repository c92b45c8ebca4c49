"""SGLang as inference server: how it is started here. It runs in an environment of its own; nothing of it is imported."""
