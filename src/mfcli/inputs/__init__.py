"""From arguments to RGB pictures: files, folders, globs, lists, archives, web addresses, and decoding what they hold.

Which pixels a model sees of a picture is decided by models/preprocess.py.
"""
