"""What happens inside a trained network, for people: tables, pictures, JSON."""
