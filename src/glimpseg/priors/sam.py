"""Image encoder of the Segment Anything Model, frozen, for the axial slices of one sequence.

Weights come from a local folder or file and are never downloaded. The network is that of transformers (`pip install
'glimpseg[sam]'`); tensors of original weights are renamed for it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from glimpseg.data.cache import file_digest
from glimpseg.errors import InputError, ModelError, UsageError
from glimpseg.priors.settings import Prior

PERCENTILES = (0.5, 99.5)
"""Percentiles of the brain's intensities that become 0 and 1."""
LEAST_MM2 = 200.0
"""Smallest area of brain, in mm², of a slice that is encoded."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of SAM's training images, as shares of 255."""
SLICES_AT_ONCE = 4
"""Slices in one pass of the encoder."""
RENAMED = (
    (r"^blocks\.", "layers."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"^neck\.0\.", "neck.conv1."),
    (r"^neck\.1\.", "neck.layer_norm1."),
    (r"^neck\.2\.", "neck.conv2."),
    (r"^neck\.3\.", "neck.layer_norm2."),
)
"""Patterns of the original tensor names within `image_encoder`, and transformers' names within `vision_encoder`."""


class Encoder:
    """Frozen image encoder for slices of `side` x `side` pixels. Raises: as `weights_path` and `read_encoder`."""

    def __init__(self, settings: Prior, device: torch.device) -> None:
        source = weights_path(settings)
        self.side, self.scaling, self.device = settings.side, settings.scaling, device
        network = resized_encoder(read_encoder(source), settings.side)
        self._network = network.float().to(device).eval().requires_grad_(False)

    @property
    def channels(self) -> int:
        """Channels of the features."""
        return int(self._network.config.output_channels)

    @torch.inference_mode()
    def features(self, pictures: Float[np.ndarray, "n s s"]) -> Float[np.ndarray, "n c h w"]:
        """Return the features, as float16, of square slices with values from 0 to 1; slices are resized to `side`."""
        mean, deviation = (torch.tensor(values, device=self.device)[:, None, None] for values in IMAGENET)
        side = self.side // self._network.config.patch_size
        features = np.zeros((len(pictures), self.channels, side, side), np.float16)
        for start in range(0, len(pictures), SLICES_AT_ONCE):
            part = slice(start, start + SLICES_AT_ONCE)
            images = torch.from_numpy(pictures[part])[:, None].to(self.device)
            images = functional.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
            images = images.expand(-1, 3, -1, -1)
            if self.scaling == "imagenet":
                images = (images - mean) / deviation
            features[part] = self._network(pixel_values=images).last_hidden_state.half().cpu().numpy()
        return features


def weights_path(settings: Prior) -> Path:
    """Return the path of the weights. Raises: UsageError if they are not named, or not there."""
    if settings.weights is None:
        raise UsageError(
            "The prior sam needs weights: name a folder with --set data.prior.weights=FOLDER (sam-vit-base or "
            "medsam-vit-base of Hugging Face, or an original .pth), or do without: --set data.prior.kind=none --set "
            "config.refinement=0 --set config.agreement=0."
        )
    source = Path(settings.weights).expanduser()
    if not source.exists():
        raise UsageError(f"The weights {source} of the prior sam are not there. Nothing is downloaded.")
    return source


def brain_slices(
    image: Float[np.ndarray, "x y z"], brain: Bool[np.ndarray, "x y z"], spacing_mm: float
) -> tuple[Float[np.ndarray, "n s s"], list[int]]:
    """Return the axial slices with at least `LEAST_MM2` of brain, and their indices.

    Intensities are scaled and clipped to 0 ... 1, by `PERCENTILES` of the brain; they are 0 outside it. Slices are
    padded with 0 at their ends to squares.

    Args:
        image: one sequence.
        brain: voxels of the brain.
        spacing_mm: side of a voxel, in mm.
    """
    places = np.flatnonzero(brain.sum((0, 1)) * spacing_mm**2 >= LEAST_MM2).tolist()
    low, high = np.percentile(image[brain], PERCENTILES) if brain.any() else (0.0, 1.0)
    scaled = np.where(brain, np.clip((image - low) / max(high - low, 1e-8), 0, 1), 0).astype(np.float32)
    side = max(image.shape[:2])
    padded = np.pad(scaled, ((0, side - image.shape[0]), (0, side - image.shape[1]), (0, 0)))
    return np.ascontiguousarray(padded[:, :, places].transpose(2, 0, 1)), places


def read_encoder(source: Path) -> Any:
    """Return transformers' encoder with the weights of a folder or of an original file.

    Raises: UsageError without transformers; ModelError for something else than SAM.
    """
    transformers = import_transformers()
    if source.is_dir():
        try:
            config = transformers.SamConfig.from_pretrained(source, local_files_only=True).vision_config
            network, report = transformers.SamVisionModel.from_pretrained(
                source, config=config, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError, EOFError) as error:
            raise ModelError(
                f"{source} is not a folder of SAM in Hugging Face's layout: {_first_line(error)}"
            ) from error
        if report["missing_keys"]:
            raise ModelError(f"{source} lacks weights of SAM's image encoder, such as {min(report['missing_keys'])}.")
        return network
    try:
        weights = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(f"{source} cannot be read as weights: {_first_line(error)}") from error
    renamed = renamed_weights(weights) if isinstance(weights, Mapping) else {}
    if "pos_embed" not in renamed:
        raise ModelError(f"{source} holds no image encoder of SAM: image_encoder.pos_embed is missing.")
    try:
        network = transformers.SamVisionModel(_config_of(renamed, transformers))
    except (KeyError, IndexError, ValueError, AttributeError, TypeError, ZeroDivisionError) as error:
        raise ModelError(f"{source} lacks weights of SAM's image encoder, or has some of another shape.") from error
    try:
        network.load_state_dict({f"vision_encoder.{name}": value for name, value in renamed.items()})
    except RuntimeError as error:
        raise ModelError(f"The weights of {source} do not fit SAM's image encoder: {_first_line(error)}") from error
    return network


def renamed_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the image encoder's weights under transformers' names; all other weights are left out."""
    renamed = {}
    for name, value in weights.items():
        if name.startswith("image_encoder."):
            own = name.removeprefix("image_encoder.")
            for pattern, replacement in RENAMED:
                own = re.sub(pattern, replacement, own)
            renamed[own] = value
    return renamed


def resized_encoder(network: Any, side: int) -> Any:
    """Return the encoder for slices of another side.

    Position embeddings are interpolated: the absolute ones, and the relative ones of layers with global attention.

    Args:
        network: transformers' encoder.
        side: side of a slice, in pixels.
    """
    config = network.config
    if config.image_size == side:
        return network
    state = dict(network.state_dict())
    other = type(network)(type(config)(**{**config.to_dict(), "image_size": side}))
    for name, value in other.state_dict().items():
        old = state[name]
        if old.shape == value.shape:
            continue
        if name.endswith("pos_embed"):
            moved = functional.interpolate(old.permute(0, 3, 1, 2), value.shape[1:3], mode="bilinear")
            state[name] = moved.permute(0, 2, 3, 1)
        else:
            state[name] = functional.interpolate(old.T[None], len(value), mode="linear")[0].T
    other.load_state_dict(state)
    return other


def weights_digest(source: Path) -> str:
    """Return a SHA-256 over name and content of an original file, or of a folder's `.json`, `.safetensors`, `.bin`.

    Raises: InputError for a folder without any.
    """
    files = [source]
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix in (".json", ".safetensors", ".bin"))
    if not files:
        raise InputError(f"{source} holds no weights. Give a folder in Hugging Face's layout.")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        digest.update(file_digest(path))
    return digest.hexdigest()


def _config_of(weights: Mapping[str, Tensor], transformers: Any) -> Any:
    """Return transformers' configuration for the sizes of the weights."""
    hidden, _, _, patch = weights["patch_embed.projection.weight"].shape
    grid = weights["pos_embed"].shape[1]
    relative = [value for name, value in weights.items() if name.endswith("attn.rel_pos_h")]
    windows = [(len(value) + 1) // 2 for value in relative]
    return transformers.SamVisionConfig(
        hidden_size=hidden,
        output_channels=weights["neck.conv1.weight"].shape[0],
        num_hidden_layers=len(relative),
        num_attention_heads=hidden // relative[0].shape[1],
        image_size=grid * patch,
        patch_size=patch,
        window_size=min(windows),
        global_attn_indexes=[number for number, window in enumerate(windows) if window == grid],
        mlp_dim=weights["layers.0.mlp.lin1.weight"].shape[0],
        num_pos_feats=weights["neck.conv1.weight"].shape[0] // 2,
    )


def import_transformers() -> Any:
    """Return the package transformers, with its log silenced. Raises: UsageError if it is missing or does not work."""
    try:
        import transformers
        from transformers import SamVisionModel  # noqa: F401
    except (ImportError, RuntimeError) as error:
        wrong = "torchvision" in str(error)
        raise UsageError(
            "SAM needs the package transformers"
            + (
                ", which fails on a torchvision that is not made for this torch: uninstall torchvision"
                if wrong
                else "; install it with `pip install 'transformers>=4.57'`, or the extra glimpseg[sam]"
            )
            + f" ({_first_line(error)})."
        ) from error
    transformers.logging.set_verbosity_error()  # otherwise each load lists the decoder's tensors as unused
    return transformers


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
