"""What `asearch replay` and `asearch regrade` are made of."""
