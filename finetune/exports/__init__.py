"""The model bundle, the exported files, and the proof that they answer alike. No Lightning."""
