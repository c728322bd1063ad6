"""The gradient through time of a trained model: measured, told and drawn."""
