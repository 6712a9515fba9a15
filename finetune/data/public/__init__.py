"""Data sets that anybody may have: embedded, or fetched from their publishers."""
