"""Text made harder on purpose, whole batches of numpy arrays at a time, and what is to be said of it.

What becomes of a row is a pure function of (seed, epoch, row): see onefold.data.draws.
"""
