"""Experiment trackers as readers of a run's streams. No training code knows of them."""
