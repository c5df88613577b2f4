"""A simulated deployment: the real Leader, Helper, client and collector in one process, driven by
one seed, on a simulated network with simulated clocks.

``python -m tests.simulation --help`` says how to run, replay and shrink seeds.
"""
