"""One function per verb: the only place where config meets components."""
