"""What an audit looks at and finds: the inner rooms of ``audit``."""
