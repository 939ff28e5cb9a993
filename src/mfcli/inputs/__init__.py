"""From arguments to RGB pictures: files, folders, globs, lists, archives and URLs, and the decoding of pictures.

A new kind of input is a file here and a line in `sources._expand`. What becomes of the decoded pixels belongs in
models/preprocess.py.
"""
