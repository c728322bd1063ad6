"""Why a trained network goes wrong on sequences much longer than those of training.

measuring.py has the three things that are measured, each with its formula, runs.py reads runs and
puts the numbers of one together, and pictures.py draws them. The command is in __main__.py.
"""
