"""How fast whole training steps are, and `eval` and `predict`, against other ways of doing it.

regimes.py has the sizes, torch_ways.py, jax_ways.py and keras_ways.py who takes part, measuring.py
the turns that they take, inference.py evaluation and prediction. The command is in __main__.py.
"""
