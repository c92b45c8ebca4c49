"""What `asearch audit` knows of its own: it shares the bus and the schemas with the rest, and no other code."""
