"""Images that formulas draw, with labels that are known because the formula is: no photograph.

To pretrain on where nothing else may be used. A class is a set of numbers; every image of it has
other colours, phases, positions and disturbances.
"""
