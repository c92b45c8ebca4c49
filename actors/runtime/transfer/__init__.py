"""How published weights come from the trainer to the engines: one interface, an implementation for each way."""
