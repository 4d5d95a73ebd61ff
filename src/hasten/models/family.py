"""What is particular to a family of models: the `FAMILY` of each module in `architectures`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from hasten.models.config import ModelConfig
    from hasten.models.weights import StoredTensor

__all__ = ["Family", "GgufForm", "LayerType"]

LayerType = Literal["full_attention", "sliding_attention"]


@dataclass(frozen=True, slots=True)
class GgufForm:
    """How llama.cpp's converter writes a family.

    Attributes:
        architecture: `general.architecture`.
        names: Names of tensors of a layer where they are not those of Llama, and what they are in
            Hugging Face checkpoints.
        interleaved: Rows of queries and keys lie as llama.cpp turns them: neighbours in pairs.
        norm_offset: What the converter adds to the weights of norms.
        adapt: Adds what keys of the family's own say: from the configuration that all families
            have, and the metadata without the architecture's prefix.
        describe: The inverse of `adapt`: keys of the family's own, without prefix.
    """

    architecture: str
    names: Mapping[str, str] = field(default_factory=dict)
    interleaved: bool = False
    norm_offset: float = 0.0
    adapt: Callable[[ModelConfig, Mapping[str, Any]], ModelConfig] | None = None
    describe: Callable[[ModelConfig], dict[str, float]] | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """How the files of a `model_type` are read.

    Attributes:
        architecture: Name of the model class in transformers.
        defaults: What a key means that config.json leaves out, where the family says.
        reads: Keys of config.json that change what the family computes, beyond those that all
            families read. A key that another family reads and this one does not is refused unless
            its value changes nothing.
        activation_key: Key that names the activation of the feed-forward block.
        activations: Names it may have.
        layer_types: The type of each layer where config.json does not list them; None where all
            are alike.
        arrange: Gives the tensors of a file the names, and the shapes, that the graph asks for;
            None where they have them.
        gguf: How GGUF files hold it; None if they do not.
        joint: Modules of a layer that are one in the family's files and several in the graph: the
            rows of each of these by name; None where there are none.
    """

    architecture: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    activation_key: str = "hidden_act"
    activations: tuple[str, ...] = ("silu", "swish")
    layer_types: Callable[[Mapping[str, Any], int], list[LayerType]] | None = None
    arrange: Callable[[ModelConfig, Mapping[str, StoredTensor]], dict[str, StoredTensor]] | None = (
        None
    )
    gguf: GgufForm | None = None
    joint: Callable[[ModelConfig], Mapping[str, Mapping[str, int]]] | None = None
