"""Backbones, heads, the classifier made of both, and what is frozen: plain torch and timm."""
