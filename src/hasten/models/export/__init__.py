"""Writers of files that other programs read: GGUF, compressed-tensors, plain safetensors."""
