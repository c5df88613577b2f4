"""How all tests run: property tests are the same on every run, and a slow machine fails none."""

from hypothesis import settings

settings.register_profile("dapd", deadline=None, derandomize=True)
settings.load_profile("dapd")
