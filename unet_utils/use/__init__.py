"""What a first reader may skip."""
