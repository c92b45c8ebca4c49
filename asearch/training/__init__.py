"""The trainer's rank process: megatron-core on CPU or CUDA, driven over a socket pair."""
