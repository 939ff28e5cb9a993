"""Checkpoints on this machine: the cache, other programs' caches, downloads, and the bundled model.

Knows files, digests and whose parameters a file holds; what it is made into is the business of mfcli.artifact.
"""
