"""A trained model that answers over HTTP, on this machine alone."""
