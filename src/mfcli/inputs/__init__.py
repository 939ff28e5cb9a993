"""From arguments to RGB pictures: files, folders, globs, lists, archives and URLs, and the decoding of pictures.

A new kind of input is a kind in arguments.py, a case in sources.py and a file of its own here. What becomes of the
decoded pixels belongs in models/preprocess.py.
"""
