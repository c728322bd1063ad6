"""What the states of a network encode: planes through them, measured, told and drawn."""
