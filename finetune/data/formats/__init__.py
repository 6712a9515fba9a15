"""How the bytes of an image become RGB: the inner rooms of ``decode``."""
