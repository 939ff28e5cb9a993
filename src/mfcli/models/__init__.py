"""What there is to know about a model: its row in the registry, the backbone, checkpoints, preprocessing, labels.

Nothing here knows where files are kept or what computes the logits of an artifact.
"""
