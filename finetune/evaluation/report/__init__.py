"""The page that a training ends with: what the model knows, and where it fails."""
