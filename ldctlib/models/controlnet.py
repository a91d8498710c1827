"""ControlNet (Zhang et al. 2023): a trained diffusion U-Net, frozen, and a copy of its way down that reads a condition.

Names below ``control.`` are those of the published layout below ``control_model.``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ldctlib.errors import ShapeError
from ldctlib.models.blocks import zeroed
from ldctlib.models.unet import UNet

STABLE_DIFFUSION = dict(in_channels=4, model_channels=320, channel_mult=(1, 2, 4, 4), num_res_blocks=2)
STABLE_DIFFUSION |= dict(attention_at=(1, 2, 4), num_heads=8, scale_shift_norm=False, context_dim=768)
"""The U-Net of Stable Diffusion 1.5, which the published ControlNets control: 859,520,964 weights."""


class Control(UNet):
    """A U-Net's way down and middle, which see x_t and a hint: what to add to each skip and to the middle.

    base : keyword arguments of the :class:`~ldctlib.models.unet.UNet` that it is a copy of.
    hint_channels : of the hint, an image :attr:`hint_factor` times as large as x_t.
    hint_widths : channels of the hint's encoder; from each to the next the image halves.
    hint_stem : side of its first convolution, which does not overlap; 1 for one of 3 x 3 at full size, as published.

    The hint's encoder and every output end in a convolution that starts at 0.
    """

    def __init__(self, base: Mapping[str, Any], hint_channels: int, hint_widths: Sequence[int], hint_stem: int):
        super().__init__(**base)
        del self.output_blocks, self.out
        self.hint_channels, self.hint_factor = hint_channels, hint_stem * 2 ** (len(hint_widths) - 1)
        first = dict(kernel_size=3, padding=1) if hint_stem == 1 else dict(kernel_size=hint_stem, stride=hint_stem)
        layers: list[nn.Module] = [nn.Conv2d(hint_channels, hint_widths[0], **first)]
        for a, b in pairwise(hint_widths):
            layers += [nn.SiLU(), nn.Conv2d(a, a, 3, padding=1), nn.SiLU(), nn.Conv2d(a, b, 3, stride=2, padding=1)]
        last = zeroed(nn.Conv2d(hint_widths[-1], self.skip_channels[0], 3, padding=1))
        self.input_hint_block = nn.Sequential(*layers, nn.SiLU(), last)
        zero = [nn.Sequential(zeroed(nn.Conv2d(c, c, 1))) for c in (*self.skip_channels, self.skip_channels[-1])]
        self.zero_convs, self.middle_block_out = nn.ModuleList(zero[:-1]), zero[-1]

    def forward(
        self, x_t: Tensor, t: Tensor | float, hint: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """What is added to the middle, and to the skips, the first first."""
        wanted = (len(x_t), self.hint_channels, *(self.hint_factor * n for n in x_t.shape[-2:]))
        if tuple(hint.shape) != wanted:
            raise ShapeError(f"hint must be {wanted} for this ControlNet and x_t {tuple(x_t.shape)}, got {hint.shape}")
        h, emb, attended = self.prepare(x_t, t, context=context)
        h, skips = self.encode(h, emb, attended, self.input_hint_block(hint.to(h.dtype)))
        return self.middle_block_out(h), [zero(s) for zero, s in zip(self.zero_convs, skips, strict=True)]


class ControlNet(nn.Module):
    """A frozen U-Net ``base`` with its :class:`Control`: x_t, t and a hint -> prediction. Begins as the base.

    base : the U-Net's keyword arguments. Its weights, and the control's first ones, are those of a *trained* network:
        :meth:`taken_from`. A context, if it has one, is given to both.
    hint_channels, hint_widths, hint_stem : :class:`Control`'s.

    Where a hint is dropped the answer is the base's.
    """

    def __init__(
        self,
        base: Mapping[str, Any],
        hint_channels: int = 3,
        hint_widths: Sequence[int] = (16, 32, 96, 256),
        hint_stem: int = 1,
    ):
        super().__init__()
        self.base = UNet(**base).requires_grad_(False)
        self.control = Control(base, hint_channels, hint_widths, hint_stem)
        self.in_channels, self.factor = self.base.in_channels, self.base.factor
        self.conditions = (*self.base.conditions, "hint")

    def taken_from(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A trained base's weights under the names that they have here, twice where the control copies them."""
        copied = self.control.state_dict().keys() & base.keys()
        return {f"base.{name}": t for name, t in base.items()} | {f"control.{name}": base[name] for name in copied}

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | float,
        hint: Tensor,
        context: Tensor | None = None,
        *,
        hint_dropped: Tensor | None = None,
    ) -> Tensor:
        """x_t (B, C, h, w); t raw times, (B,) or one number; hint (B, hint_channels, H, W), about within [0, 1];
        ``hint_dropped`` bool (B,), the hints to do without.
        """
        h, emb, attended = self.base.prepare(x_t, t, context=context)
        h, skips = self.base.encode(h, emb, attended)
        middle, down = self.control(x_t, t, hint, context)
        if hint_dropped is not None:
            middle, *down = (c.masked_fill(hint_dropped[:, None, None, None], 0) for c in (middle, *down))
        skips = [skip + c for skip, c in zip(skips, down, strict=True)]
        return self.base.decode(h + middle, skips, emb, attended).to(x_t.dtype)
