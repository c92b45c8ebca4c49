"""Benchmarks of the whole system, behind `asearch bench`."""
