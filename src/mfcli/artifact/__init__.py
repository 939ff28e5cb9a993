"""A checkpoint as one ONNX file that answers without torch: its graph, its metadata, finding it or building it.

Where checkpoints come from is the hub's business; what computes the logits is an engine's.
"""
