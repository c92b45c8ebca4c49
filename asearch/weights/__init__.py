"""Published weights on their way: what is in a file, whether it is what was announced, serving it and pulling it. No torch."""
