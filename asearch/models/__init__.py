"""Hugging Face model folders: configuration, weights, tokenizer, and a small decoder for inference."""
