"""From files to batches: discovery, decoding, splitting, augmenting, preprocessing."""
