"""Models: the registry, the backbone in torch, reading checkpoints, preprocessing plans, and class labels.

Nothing here knows where files are kept or how an artifact's logits are computed.
"""
