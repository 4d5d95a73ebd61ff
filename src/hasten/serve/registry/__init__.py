"""The models of a server: their names, their files, their engines."""

from hasten.serve.registry.blobs import BlobStore
from hasten.serve.registry.hub import PullProgress
from hasten.serve.registry.info import ModelInfo
from hasten.serve.registry.registry import ModelRegistry
from hasten.serve.registry.served import Served

__all__ = ["BlobStore", "ModelInfo", "ModelRegistry", "PullProgress", "Served"]
