"""A diffusion model that makes CT images from conditions: a noise map, a mask of anatomy, both (NA-Diff).

It runs on the latents of an autoencoder of noisy CT, or on pixels. Conditions are CLIP's vectors of the images of
both, as in the paper, or maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite, sqrt
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib import checkpoints
from ldctlib.checkpoints import Checkpoint
from ldctlib.ct.noise_maps import noise_map_image
from ldctlib.data.anatomy_masks import CLASSES, check_anatomy, mask_image, one_hot_on_grid
from ldctlib.diffusion import samplers
from ldctlib.diffusion.process import Process, noise_like
from ldctlib.diffusion.samplers import Step
from ldctlib.errors import CheckpointError, ParameterError, ShapeError
from ldctlib.models.autoencoder import Posterior
from ldctlib.pipelines.pipeline import PUBLISHED, PipelineSpec
from ldctlib.pipelines.published_clip import published_clip
from ldctlib.pipelines.published_vae import published_vae
from ldctlib.units import SOFT_TISSUE, Range

WINDOW_RANGE = Range(SOFT_TISSUE.low, SOFT_TISSUE.high)
"""Images are clipped to the soft-tissue window before they are encoded: fixed, so that a dose keeps its meaning."""

SOURCES: dict[str, tuple[str, ...]] = {
    "noise": ("vector",),
    "anatomy": ("vector",),
    "anatomy_map": ("hint",),
    "noise_map": ("hint",),
    "anatomy_one_hot": ("hint", "concat"),
    "anatomy_255": ("concat",),
}
"""What a condition is made of, and which inputs of a network take it: CLIP's vector of the noise map or of the mask,
the mask's classes on the latents' grid as shares of area, or the noise map's own latents. The last two are the mask
itself, on the pixels of the image or of a coarser pixel grid: a channel a class, or class / 255 in one channel."""


class SynthesisPipeline:
    """Network, process, latents and conditions: built from a recipe to train, from a checkpoint to sample.

    Encoded images and conditions are a dict of tensors: "mean" and "logvar" (B, c, h, w) of the image, and one for each
    of :data:`SOURCES`, but one "mask" (uint8) for the last two; a network uses those that its ``spec.conditions`` name.

    factor : image pixels a side of one place of the grid that is diffused, :attr:`channels` the numbers there.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: PipelineSpec,
        used: Mapping[str, Checkpoint],
        *,
        hu_range: Range | None = None,
        device: str | torch.device = "cpu",
    ):
        """``hu_range`` is for pixels; latents have their autoencoder's."""
        self.network, self.spec, self.device = network, spec, torch.device(device)
        self.process = Process.from_spec(spec.process)
        if set(spec.conditions) != set(network.conditions):
            raise CheckpointError(
                f"{type(network).__name__} takes {', '.join(network.conditions) or 'no condition'}, and the pipeline "
                f"has {', '.join(spec.conditions) or 'none'} for it"
            )
        self.sources = [source for sources in spec.conditions.values() for source in sources]
        for name, sources in spec.conditions.items():
            if wrong := [s for s in sources if name not in SOURCES.get(s, ())]:
                raise ParameterError(
                    f"{name} is made of {', '.join(s for s in SOURCES if name in SOURCES[s])}; got {wrong}"
                )
        self._open_grid(used, hu_range)
        self.clip = None if spec.clip is None else self._built("clip", published_clip, used)

    def _open_grid(self, used: Mapping[str, Checkpoint], hu_range: Range | None) -> None:
        self.autoencoder = self._built("autoencoder", published_vae, used)
        name = self.spec.autoencoder
        self.hu_range = used[name].range if name in used else WINDOW_RANGE
        self.factor, self.channels = self.autoencoder.factor, self.autoencoder.latent_channels

    def _built(self, kind: str, published: Callable[[str], nn.Module], used: Mapping[str, Checkpoint]) -> nn.Module:
        """The network that the spec names, of a checkpoint or a published one, frozen."""
        name = getattr(self.spec, kind)
        if name.startswith(PUBLISHED):
            return published(name.removeprefix(PUBLISHED)).to(self.device)
        return checkpoints.build(used[name], map_location=self.device).requires_grad_(False)

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, device: str | torch.device = "cpu") -> SynthesisPipeline:
        """The trained model of a checkpoint. The networks that it uses are found by name and hash, beside it first."""
        checkpoint = checkpoints.load(path, map_location=device)
        if checkpoint.pipeline is None:
            raise CheckpointError(f"{path}: records no diffusion process: it is no diffusion model")
        spec, used = PipelineSpec(**checkpoint.pipeline), {}
        for name in spec.uses:
            found = checkpoints.find(name, sha256=checkpoint.uses[name], folders=[checkpoint.path.parent])
            used[name] = checkpoints.load(found, map_location=device)
        kind, network = cls if spec.autoencoder else PixelSynthesis, checkpoints.build(checkpoint, map_location=device)
        return kind(network, spec, used, hu_range=checkpoint.hu_range, device=device)

    # ------------------------------------------------------------ encoding

    @torch.no_grad()
    def encode_images(self, images_hu: Tensor) -> dict[str, Tensor]:
        """(B, 1, H, W) in HU -> "mean" and "logvar" of raw latents."""
        posterior = self.autoencoder.encode(self.hu_range.to_model(images_hu.to(self.device)))
        return posterior._asdict()

    def _x0(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """What is diffused, of encoded images: a sample of the scaled latents."""
        return self.autoencoder.scale(Posterior(batch["mean"], batch["logvar"]).sample(generator))

    @torch.no_grad()
    def encode_conditions(
        self, *, noise_map_hu: Tensor | None = None, mask: Tensor | None = None, sources: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """A noise map in HU and a mask of classes, (B, 1, H, W) each -> the named sources, the network's by default.

        Raises ParameterError for a source whose map is not there.
        """
        out = {}
        for source in self.sources if sources is None else sources:
            given = noise_map_hu if source.startswith("noise") else mask
            if given is None:
                kind = "noise map" if source.startswith("noise") else "mask"
                raise ParameterError(f"this model is conditioned on {source.replace('_', ' ')}: give a {kind}")
            given = given.to(self.device)
            if source in ("noise", "anatomy"):
                image = noise_map_image(given) if source == "noise" else mask_image(given)
                features = self.clip.encode_image(image)
                out[source] = features * sqrt(features.shape[-1])  # about 1 a number
            elif source == "noise_map":
                out[source] = self.autoencoder.scale(self.encode_images(noise_map_image(given))["mean"])
            elif source == "anatomy_map":
                out[source] = one_hot_on_grid(given, self.factor)
            else:  # the class in the middle of each pixel
                check_anatomy(given)
                cell = self.spec.cell
                out["mask"] = given[..., cell // 2 :: cell, cell // 2 :: cell].to(torch.uint8)
        return out

    def inputs(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's inputs: vectors stacked (B, n, D), maps side by side (B, C, h, w)."""
        out = {}
        for name, sources in self.spec.conditions.items():
            parts = [self._shown(source, encoded) for source in sources]
            out[name] = torch.stack(parts, dim=1) if name == "vector" else torch.cat(parts, dim=1)
        return out

    @staticmethod
    def _shown(source: str, encoded: Mapping[str, Tensor]) -> Tensor:
        if source == "anatomy_255":
            return encoded["mask"].float() / 255
        if source == "anatomy_one_hot":
            classes = torch.arange(len(CLASSES), device=encoded["mask"].device)
            return (encoded["mask"] == classes[:, None, None]).float()
        return encoded[source]

    # ------------------------------------------------------------ training and sampling

    def loss(
        self, network: nn.Module, batch: Mapping[str, Tensor], generator: torch.Generator, *, drop: float = 0.0
    ) -> Tensor:
        """The process's loss on encoded images. Each condition of each image is dropped with probability ``drop``."""
        x0, inputs = self._x0(batch, generator), self.inputs(batch)
        if drop:
            inputs |= _dropped(inputs, lambda shape: torch.rand(shape, generator=generator, device=x0.device) < drop)
        return self.process.loss(lambda x_t, t: network(x_t, t, **inputs), x0, generator=generator)

    def predictor(self, encoded: Mapping[str, Tensor], guidance: float = 1.0):
        """eps(x_t, t) with the conditions bound.

        guidance : w of classifier-free guidance (Ho & Salimans 2022): eps_0 + w (eps_c - eps_0), where all conditions
            are dropped for eps_0. 1 is none, and needs one evaluation in place of two.
        """
        if not isfinite(guidance):
            raise ParameterError(f"guidance is a finite number, got {guidance}")
        inputs = self.inputs(encoded)
        conditional = self.process.predictor(lambda x_t, t: self.network(x_t, t, **inputs))
        if guidance == 1.0 or not inputs:
            return conditional
        dropped = _dropped(inputs, lambda shape: torch.ones(shape, dtype=torch.bool))
        if not dropped:
            raise ParameterError("this model cannot do without its condition, which guidance asks for: guidance is 1")
        null = inputs | dropped
        unconditional = self.process.predictor(lambda x_t, t: self.network(x_t, t, **null))

        def eps(x_t: Tensor, t: Tensor) -> Tensor:
            base = unconditional(x_t, t)
            return base + guidance * (conditional(x_t, t) - base)

        return eps

    def steps(
        self,
        encoded: Mapping[str, Tensor],
        count: int,
        size: tuple[int, int],
        *,
        generators: Sequence[torch.Generator],
        sampler: str = "ddim",
        steps: int = 30,
        spacing: str = "trailing",
        guidance: float = 1.0,
        **options,
    ) -> Iterator[Step]:
        """The sampler's steps on scaled latents, from pure noise, for ``count`` images of ``size`` pixels."""
        walk = samplers.find(sampler, **options)
        factor = self.factor * self.network.factor
        if any(n % factor for n in size):
            raise ParameterError(f"this model makes images with sides of multiples of {factor}, got {tuple(size)}")
        h, w = (n // self.factor for n in size)
        like = torch.empty(count, self.channels, h, w, device=self.device)
        schedule = self.process.schedule
        eps = self.predictor(encoded, guidance)
        yield from walk(
            eps, noise_like(like, generators), schedule, schedule.times(steps, spacing), generator=generators
        )

    @torch.no_grad()
    def decode(self, z: Tensor, *, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Scaled latents -> (B, 1, H, W) in HU: the noise-free image, and with generators the noise of each image."""
        raw = self.autoencoder.unscale(z)
        image = self.autoencoder.decode(raw)
        if generators is not None and hasattr(self.autoencoder, "draw_noise"):
            white = noise_like(image.expand(-1, len(self.autoencoder.nodes), -1, -1), generators)
            image = image + self.autoencoder.draw_noise(raw, white)
        return self.hu_range.from_model(image.clamp(-1.0, 1.0))


class PixelSynthesis(SynthesisPipeline):
    """The same on the pixels of images clipped to ``hu_range``, each the mean of ``spec.cell`` x ``spec.cell`` of them.

    Encoded images are "image" (B, 1, h, w). Noise is a part of the image as it was in training, averaged like it.
    """

    def _open_grid(self, used: Mapping[str, Checkpoint], hu_range: Range | None) -> None:
        if hu_range is None:
            raise CheckpointError("a diffusion on pixels needs the HU range of its model")
        self.hu_range, self.factor, self.channels = hu_range, self.spec.cell, 1

    @torch.no_grad()
    def encode_images(self, images_hu: Tensor) -> dict[str, Tensor]:
        """(B, 1, H, W) in HU -> "image" in model units."""
        if any(n % self.factor for n in images_hu.shape[-2:]):
            cells = f"cells of {self.factor} x {self.factor} pixels"
            raise ShapeError(f"an image of {tuple(images_hu.shape[-2:])} has no whole {cells}")
        x = self.hu_range.to_model(images_hu.to(self.device)).clamp(-1.0, 1.0)
        return {"image": F.avg_pool2d(x, self.factor)}

    def _x0(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        return batch["image"]

    @torch.no_grad()
    def decode(self, z: Tensor, *, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """The grid -> (B, 1, H, W) in HU, enlarged (bicubic) where a cell is more than a pixel; nothing is drawn."""
        if self.factor > 1:
            z = F.interpolate(z, scale_factor=self.factor, mode="bicubic", align_corners=False)
        return self.hu_range.from_model(z.clamp(-1.0, 1.0))


def _dropped(inputs: Mapping[str, Tensor], draw) -> dict[str, Tensor]:
    """The arguments that say which conditions of which image are dropped; ``draw`` gives bool of a shape."""
    out = {}
    if "vector" in inputs:
        out["dropped"] = draw(inputs["vector"].shape[:2])
    if "hint" in inputs:
        out["hint_dropped"] = draw(inputs["hint"].shape[:1])
    return out
