"""Training: pictures with classes in, the folder of a model of the user's own out.

How a head is fitted and when it abstains is known in models, how the artifact is written in artifact, how the figures
become files in outputs. Nothing here prints.
"""
