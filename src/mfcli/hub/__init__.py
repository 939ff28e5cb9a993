"""Checkpoints on this machine: the cache, other programs' caches, downloads, and the bundled model.

Knows files and digests only; what a checkpoint is made into is the business of mfcli.artifact.
"""
