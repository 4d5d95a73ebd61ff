"""Embedding models: one library a process, from texts to vectors.

The peers sort texts by length and pad batches of 32, as sentence-transformers does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from protocol import serve

BATCH = 32
LONGEST = 256  # tokens, what all-MiniLM-L6-v2 is meant for

Embed = Callable[[list[str]], Any]
"""Texts to float32 [n, dimensions], in their order."""


class Embedding:
    """One library with one model."""

    def load(self, library: str, model: str, threads: int, **settings: Any) -> dict[str, Any]:
        """Loads a Hugging Face directory."""
        self.embed_texts, runs = LIBRARIES[library](model, threads, **settings)
        return {"runs": runs}

    def embed(self, texts: list[str]) -> float:
        """Seconds from texts to vectors."""
        started = perf_counter()
        self.embed_texts(texts)
        return perf_counter() - started

    def vectors(self, texts: list[str], target: str) -> None:
        """Writes the vectors to a .npy file."""
        np.save(target, self.embed_texts(texts))


def hasten(model: str, threads: int, **settings: Any) -> tuple[Embed, str]:
    """Through `Embedder`."""
    from hasten import __version__
    from hasten.generation.embedding import Embedder, embedder_options
    from hasten.models import load_model

    loaded = load_model(model)
    options = embedder_options(loaded, threads=threads, max_context=LONGEST, **settings)
    embedder = Embedder(loaded, options)
    formats = " ".join(sorted(set(embedder.formats.values())))
    return (
        lambda texts: embedder.embed(texts, truncate=True),
        f"{__version__}: {formats}, KV {options.kv}, {embedder.isa}",
    )


def sentence_transformers(model: str, threads: int) -> tuple[Embed, str]:
    """Through `SentenceTransformer.encode`."""
    import torch
    from sentence_transformers import SentenceTransformer, __version__

    torch.set_num_threads(threads)
    made = SentenceTransformer(model, device="cpu", local_files_only=True)
    return (
        lambda texts: made.encode(texts, batch_size=BATCH, show_progress_bar=False),
        f"{__version__}, torch {torch.__version__}",
    )


def transformers(model: str, threads: int, dtype: str = "float32") -> tuple[Embed, str]:
    """Through the model itself, less what its library adds."""
    import torch
    from transformers import AutoModel, __version__

    torch.set_num_threads(threads)
    made = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def hidden(ids: Any, mask: Any) -> Any:
        output = made(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        return output.last_hidden_state.float().numpy()

    return in_batches(model, hidden), f"{__version__} {dtype}, torch {torch.__version__}"


def onnxruntime(model: str, threads: int, cache: str, int8: bool = False) -> tuple[Embed, str]:
    """An exported graph; int8 by ONNX Runtime's own dynamic quantisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    file = exported(model, Path(cache), int8=int8)
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])

    def hidden(ids: Any, mask: Any) -> Any:
        return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    return in_batches(model, hidden), f"{onnxruntime.__version__}, {file.stem}"


LIBRARIES = {
    "hasten": hasten,
    "sentence-transformers": sentence_transformers,
    "transformers": transformers,
    "onnxruntime": onnxruntime,
}


def in_batches(model: str, hidden: Callable[[Any, Any], Any]) -> Embed:
    """Tokens, padded batches, and the mean over those of each text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()

    def embed(texts: list[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        found: Any = None
        for first in range(0, len(order), BATCH):
            part = order[first : first + BATCH]
            encoded = tokenizer.encode_batch([texts[index] for index in part])
            ids = np.array([one.ids for one in encoded], np.int64)
            mask = np.array([one.attention_mask for one in encoded], np.int64)
            weights = mask[:, :, None].astype(np.float32)
            means = (hidden(ids, mask) * weights).sum(axis=1) / weights.sum(axis=1)
            if found is None:
                found = np.empty((len(texts), means.shape[1]), np.float32)
            found[part] = means / np.linalg.norm(means, axis=1, keepdims=True)
        return found

    return embed


def exported(model: str, folder: Path, *, int8: bool) -> Path:
    """The model as an ONNX file, made once and kept."""
    plain, small = folder / "float32.onnx", folder / "int8.onnx"
    if not plain.exists():
        import torch
        from transformers import AutoModel

        folder.mkdir(parents=True, exist_ok=True)

        class Hidden(torch.nn.Module):
            """The model with the two inputs and the one output that count."""

            def __init__(self) -> None:
                super().__init__()
                self.inner = AutoModel.from_pretrained(model, attn_implementation="eager").eval()

            def forward(self, ids: Any, mask: Any) -> Any:
                return self.inner(input_ids=ids, attention_mask=mask).last_hidden_state

        example = torch.ones(2, 8, dtype=torch.int64)
        axes = {0: "texts", 1: "tokens"}
        torch.onnx.export(
            Hidden(),
            (example, example),
            str(plain),
            input_names=["input_ids", "attention_mask"],
            output_names=["hidden"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "hidden": axes},
            dynamo=False,
        )
    if int8 and not small.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(plain, small, weight_type=QuantType.QInt8, per_channel=True)
    return small if int8 else plain


if __name__ == "__main__":
    serve(Embedding())
