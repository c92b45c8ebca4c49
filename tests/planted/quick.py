"""A pytest plugin for the harness: the same examples every time, and none made smaller, for a failure is all that is asked."""

from hypothesis import Phase, settings

settings.register_profile("planted", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile("planted")
