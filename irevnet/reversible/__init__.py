"""What makes a network reversible: coupling blocks, their arithmetic, their backward pass."""
