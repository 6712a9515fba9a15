"""A folder of images of any size in, one row per image out."""
