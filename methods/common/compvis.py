"""Names of Stable Diffusion 1.x's weights in the CompVis code, one by one, so that files with a few of them can be read too."""

from __future__ import annotations

from collections.abc import Iterable

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer."
ASIDE = ("first_stage_model.", "model_ema.")
"""Parts that no method changes: the autoencoder, and averages of the weights."""

_OUTER = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip


def unet_names(names: Iterable[str], layers: int) -> dict[str, str]:
    """CompVis' name → diffusers' name, of a UNet's weights; `layers` is diffusers' `layers_per_block`."""
    own = list(names)
    attending = {name.split(".")[1] for name in own if name.startswith("up_blocks.") and ".attentions." in name}
    return {UNET + _compvis(name, layers, attending): name for name in own}


def _compvis(name: str, layers: int, attending: set[str]) -> str:
    module, _, kind = name.rpartition(".")
    if module in _OUTER:
        return f"{_OUTER[module]}.{kind}"
    block, *rest = module.split(".")
    if block == "mid_block":  # resnet, attention, resnet
        what, index, *inner = rest
        return f"middle_block.{2 * int(index) + (what == 'attentions')}.{_inner(what, inner)}.{kind}"
    level, what, index, *inner = rest
    up = block == "up_blocks"
    first, side = (0, "output_blocks") if up else (1, "input_blocks")
    place = first + int(level) * (layers + 1)
    if what == "downsamplers":  # a place of its own
        return f"{side}.{place + layers}.0.op.{kind}"
    if what == "upsamplers":  # at the end of the level's last place
        return f"{side}.{place + layers}.{1 + (level in attending)}.conv.{kind}"
    return f"{side}.{place + int(index)}.{int(what == 'attentions')}.{_inner(what, inner)}.{kind}"


def _inner(what: str, inner: list[str]) -> str:
    """Within a resnet names differ, within an attention they do not."""
    return ".".join([_RESNET[inner[0]], *inner[1:]] if what == "resnets" else inner)
