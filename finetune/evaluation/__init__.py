"""How good a trained classifier is: numbers and pictures."""
