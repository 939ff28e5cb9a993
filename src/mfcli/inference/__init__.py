"""Pictures in, predictions out: the predictor, its batch pipeline, and the engines that compute logits.

Which pictures there are (inputs), how a model gets onto this machine (hub, artifact) and how results are written
(outputs) are decided elsewhere.
"""
