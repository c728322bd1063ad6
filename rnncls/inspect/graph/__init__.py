"""The graph of a network: nodes and edges, where they stand, and how they are drawn."""
