"""Artifacts: a checkpoint as one ONNX file that needs no torch, with its preprocessing plan and labels in its metadata.

Where checkpoints come from is the business of mfcli.hub; computing logits is that of an engine.
"""
