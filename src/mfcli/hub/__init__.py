"""Getting a model's checkpoint onto this machine: the cache, other programs' caches, downloads, the bundled model.

Knows files and digests only. What is done with a checkpoint is up to artifact.
"""
